"""One process of kernels.py: `python kernel_times.py ROUNDS SIZE…` prints JSON, block size -> thread seconds.

Decode attention of 16 sequences of 1024 tokens by the numba kernel on one thread, over caches of several block sizes
whose blocks lie in random order; the median of rounds in which the sizes take turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from paged_kernels import KVCache, plan_attention

SEQUENCES, CONTEXT = 16, 1024


def _decode(block_size: int) -> Callable[[], torch.Tensor]:
    blocks, kv_heads, group, head_dim = -(-CONTEXT // block_size), 4, 4, 64
    cache = KVCache(*(torch.randn(SEQUENCES * blocks, block_size, kv_heads, head_dim) for _ in range(2)))
    tables = torch.randperm(SEQUENCES * blocks).view(SEQUENCES, blocks)
    query = torch.randn(SEQUENCES, kv_heads * group, head_dim)
    plan = plan_attention(tables, torch.full((SEQUENCES,), CONTEXT), torch.arange(SEQUENCES + 1), block_size,
                          backend="numba")
    return lambda: plan.attend(query, cache, scale=head_dim**-0.5)


def kernel_times(rounds: int, sizes: Sequence[int]) -> dict[int, float]:
    """Block size -> seconds. Each round begins with another size, so that none always runs behind the same one."""
    works = {size: _decode(size) for size in sizes}
    for work in works.values():
        work()  # compiled, or loaded, before it is timed
    took: dict[int, list[float]] = {size: [] for size in sizes}
    for at in range(rounds):
        first = at % len(sizes)
        for size in (*sizes[first:], *sizes[:first]):
            start = time.thread_time()
            works[size]()
            took[size].append(time.thread_time() - start)
    return {size: median(seconds) for size, seconds in took.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(kernel_times(int(sys.argv[1]), [int(size) for size in sys.argv[2:]])))
