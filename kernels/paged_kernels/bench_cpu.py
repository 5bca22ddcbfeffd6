"""`python -m paged_kernels.bench_cpu`: decode attention on one CPU thread, each backend beside the copy bandwidth.

A table in Markdown, one row a shape and dtype. Times are processor time of the thread, the best of several rounds in
which the backends take turns over several layers' caches, so that none finds its keys and values in a cache. The share
is keys and values read once, over the bytes that a large copy reads and writes in that time in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from paged_kernels import KVCache, plan_attention

_SHAPES = [  # sequences, context, KV heads, query heads a KV head, head dim
    (1, 8000, 2, 2, 64), (64, 240, 2, 2, 64), (16, 600, 4, 3, 64), (8, 600, 8, 4, 128),
]
_BACKENDS = ("numba", "torch")
_BLOCK_SIZE, _LAYERS, _ROUNDS = 16, 6, 10


def _seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def _copy_bandwidth() -> float:
    """Bytes a second, those read and those written."""
    source = torch.ones(64 << 20, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(_ROUNDS))


def _measure(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[dict[str, float], int]:
    """(seconds of each backend, bytes of keys and values) of one layer."""
    seqs, context, kv_heads, group, head_dim = shape
    blocks = -(-context // _BLOCK_SIZE)
    caches = [
        KVCache(*(torch.randn(seqs * blocks, _BLOCK_SIZE, kv_heads, head_dim).to(dtype) for _ in range(2)))
        for _ in range(_LAYERS)
    ]
    tables = torch.randperm(seqs * blocks).view(seqs, blocks)
    query = torch.randn(seqs, kv_heads * group, head_dim).to(dtype)
    best = {}
    plans = {
        backend: plan_attention(tables, torch.full((seqs,), context), torch.arange(seqs + 1), _BLOCK_SIZE,
                                backend=backend) for backend in _BACKENDS
    }
    for _ in range(_ROUNDS):
        for backend, plan in plans.items():
            def layers(plan=plan):
                return [plan.attend(query, cache, scale=head_dim**-0.5) for cache in caches]

            best[backend] = min(best.get(backend, float("inf")), _seconds(layers) / _LAYERS)
    return best, 2 * seqs * context * kv_heads * head_dim * dtype.itemsize


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    bandwidth = _copy_bandwidth()
    print(f"One thread; a copy moves {bandwidth / 1e9:.1f} GB/s.\n")
    print("| sequences x context | KV heads x group x dim | dtype | numba ms | torch ms | torch/numba | MB | of copy |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for shape in _SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            took, size = _measure(shape, dtype)
            print(f"| {shape[0]} x {shape[1]} | {shape[2]} x {shape[3]} x {shape[4]} | {str(dtype)[6:]} "
                  f"| {took['numba'] * 1e3:.2f} | {took['torch'] * 1e3:.2f} | {took['torch'] / took['numba']:.1f} "
                  f"| {size / 1e6:.1f} | {size / took['numba'] / bandwidth:.0%} |", flush=True)


if __name__ == "__main__":
    main()
