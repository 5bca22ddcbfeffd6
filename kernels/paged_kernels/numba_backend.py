"""Paged attention on a CPU, compiled: decodes read keys and values in place through the block table.

The work is divided by query rows: sequences with at most MAX_ROWS of them, decodes and verified drafts, run in the
compiled loops of `numba_kernel`; longer prefills, where dense products are faster, run in `torch_backend`. A plan's
`describe` says how many of each it has. All cores that torch may use share the compiled part.
"""

from __future__ import annotations

import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from paged_kernels.cache import SCALED_DTYPES, KVCache
from paged_kernels.layer import WholeLayers
from paged_kernels.numba_kernel import attend_items
from paged_kernels.numba_layer import MAX_PRODUCTS, MAX_TOKENS, NumbaLayers
from paged_kernels.scoring import Scoring
from paged_kernels.torch_backend import TorchPlan

MAX_ROWS = 8  # query rows of a sequence that the compiled loops take
_SMALLEST_SHARE = 1 << 17  # stored elements that are worth a thread: handing over costs as much as some 10^5 of them

# How the compiled loops see a storage dtype that numpy has not.
_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16, torch.float8_e4m3fn: torch.uint8}


class NumbaPlan:
    """The batch as arrays. Arguments as in `paged_kernels.attention`, on the CPU."""

    def __init__(
        self, block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int,
        shared_prefix_len: int = 0,
    ) -> None:
        if block_tables.device.type != "cpu":
            raise ValueError(f"attention backend 'numba' runs on the CPU, the batch is on {block_tables.device}")
        self._tables, self._contexts, self._starts = (
            x.long().contiguous().numpy() for x in (block_tables, context_lens, query_start_loc)
        )
        self._block_size = block_size
        self._num_rows = self._starts[1:] - self._starts[:-1]
        asks = self._num_rows > 0  # of one that does not, no table entry is live
        compiled = asks & (self._num_rows <= MAX_ROWS) & (self._contexts > 0)
        self._seqs, others = np.flatnonzero(compiled), np.flatnonzero(asks & ~compiled).tolist()
        self._num_others = len(others)
        self._others: TorchPlan | None = None
        if others:  # longer prefills, and sequences with nothing to attend to
            self._others = TorchPlan(block_tables, context_lens, query_start_loc, block_size, seqs=others)
            self._rows = torch.from_numpy(np.flatnonzero(np.repeat(compiled, self._num_rows)))

    def describe(self) -> str:
        """Which part of the batch runs where."""
        return f"{len(self._seqs)} sequences in numba, {self._num_others} prefills in torch"

    def whole_layers(self, num_weights: int) -> WholeLayers | None:
        """See `paged_kernels.attention.BackendPlan`: a small batch, all of whose attention runs in compiled loops."""
        num_tokens = int(self._starts[-1])
        if self._others is not None or num_tokens > MAX_TOKENS or num_tokens * num_weights > MAX_PRODUCTS:
            return None
        return NumbaLayers(self._tables, self._contexts, self._starts, self._seqs, self._block_size)

    def run(
        self, query: torch.Tensor, cache: KVCache, scoring: Scoring, *, with_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `paged_kernels.attention.BackendPlan`."""
        _check(query, cache, scoring, with_lse)
        if self._others is None:
            return self._attend_compiled(query, cache, scoring).to(query.dtype), None
        out = torch.zeros_like(query)
        self._others.run_into(out, None, query, cache, scoring)
        if len(self._seqs):
            wide = self._attend_compiled(query, cache, scoring)
            out[self._rows] = wide[self._rows].to(query.dtype)
        return out, None

    def _attend_compiled(self, query: torch.Tensor, cache: KVCache, scoring: Scoring) -> torch.Tensor:
        """The result in float32, or float64 for such queries; only the rows of the compiled sequences are set."""
        query = query.to(torch.promote_types(query.dtype, torch.float32)).contiguous()
        if cache.key_scale is not None and not cache.scales_a_slot:  # one for all slots: as good on the query
            query = query * _of_query_heads(cache.key_scale, query, cache)
        out = torch.empty_like(query)
        key, value = (_rows(x).numpy() for x in (cache.key, cache.value))
        scales = [_rows(x).numpy() if x is not None and x.dim() == 3 else None
                  for x in (cache.key_scale, cache.value_scale)]
        run = functools.partial(
            attend_items, query.numpy(), key, value, *scales, self._tables, self._contexts, self._starts, self._seqs,
            self._block_size, float(scoring.scale), scoring.window or 0, float(scoring.soft_cap or 0), out.numpy(),
        )
        bounds = self._shares(key.shape[1], key.shape[2], scoring.window)
        others = [_pool().submit(run, first, stop) for first, stop in itertools.pairwise(bounds[:-1])]
        failed = [run(bounds[-2], bounds[-1]), *(other.result() for other in others)]
        if max(failed) >= 0:
            raise ValueError(f"the block table of sequence {max(failed)} has a live entry that names no block")
        if cache.value_scale is not None and not cache.scales_a_slot:
            out *= _of_query_heads(cache.value_scale, query, cache)
        return out

    def _shares(self, num_kv_heads: int, head_dim: int, window: int | None) -> list[int]:
        """Bounds of the threads' shares of the items (sequence, KV head), about as much work in each."""
        items = len(self._seqs) * num_kv_heads
        threads = min(torch.get_num_threads(), items)
        if threads <= 1:
            return [0, items]
        contexts, rows = self._contexts[self._seqs], self._num_rows[self._seqs]
        read = contexts if window is None else np.minimum(contexts, window + rows)
        work = np.concatenate([[0], (read * (1 + rows)).cumsum()])
        threads = min(threads, max(1, int(read.sum()) * num_kv_heads * head_dim // _SMALLEST_SHARE))
        bounds = np.interp(np.linspace(0, work[-1], threads + 1), work, np.arange(len(work)) * num_kv_heads)
        return bounds.round().astype(int).tolist()


def _check(query: torch.Tensor, cache: KVCache, scoring: Scoring, with_lse: bool) -> None:
    """Raise ValueError for what the compiled loops cannot do."""
    key, value = cache.key, cache.value
    reasons = {
        "gives no LSE": with_lse,
        "has no ALiBi": scoring.alibi_slopes is not None,
        "takes values as wide as keys": value.shape[3] != key.shape[3],
        "reads contiguous caches": not (key.is_contiguous() and value.is_contiguous()),
    }
    if any(reasons.values()):
        why = "; ".join(reason for reason, holds in reasons.items() if holds)
        raise ValueError(f"attention backend 'numba' {why}: got keys {list(key.shape)} with strides {key.stride()} and "
                         f"values {list(value.shape)} with strides {value.stride()}; choose backend 'torch'")


def _of_query_heads(scale: torch.Tensor, query: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """[num_q_heads, 1] of a scale for all slots, [] or [num_kv_heads]."""
    num_kv_heads = cache.key.shape[2]
    return scale.expand(num_kv_heads).repeat_interleave(query.shape[1] // num_kv_heads)[:, None]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="attention")


def _rows(stored: torch.Tensor) -> torch.Tensor:
    """[num_blocks, block_size, …] as [slots, …], in a dtype that numpy has."""
    return stored.view(_BITS.get(stored.dtype, stored.dtype)).view(-1, *stored.shape[2:])


def warm_up(storage: torch.dtype, query: torch.dtype) -> None:
    """Compile for these dtypes, or load what was compiled before: seconds the first time, then less than one."""
    cache = KVCache(
        *(torch.zeros(1, 1, 1, 16, dtype=storage) for _ in range(2)),
        *(torch.zeros(1, 1, 1) for _ in range(2 if storage in SCALED_DTYPES else 0)),
    )
    plan = NumbaPlan(torch.zeros(1, 1), torch.ones(1), torch.arange(2), 1)
    plan.run(torch.zeros(1, 1, 16, dtype=query), cache, Scoring(1.0), with_lse=False)
