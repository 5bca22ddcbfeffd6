"""The seam: attention over a KV cache in blocks.

One canonical layout, for keys and values alike (`paged_kernels.cache.KVCache`):

    cache.key, cache.value   [num_blocks, block_size, num_kv_heads, head_dim], contiguous
    slot                     block * block_size + offset in the block
    block_tables             [num_seqs, max_blocks] int: block b of sequence s holds its positions
                             [b * block_size, (b + 1) * block_size)
    context_lens             [num_seqs] int: live positions of each sequence, its new tokens included
    query_start_loc          [num_seqs + 1] int, starts with 0: sequence s owns the query rows
                             [query_start_loc[s], query_start_loc[s + 1]), its last positions

A sequence has at least one query row, and the keys and values of its rows are already written: query row j of n
stands at position p = context_len - n + j and attends to the positions up to and including its own. With a window W
it attends to [p - W + 1, p] alone; with a soft cap c the score s becomes c * tanh(s / c). Slots that no row attends
to, and table entries past the context or wholly behind the window, are never read: they may hold anything, NaN too.

A plan holds what depends on the batch alone, so that a model builds it once a step and uses it in each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from paged_kernels.cache import KVCache
from paged_kernels.torch_backend import TorchPlan


class AttentionPlan(Protocol):
    """What one step's attention needs to know about its batch, for all layers."""

    def attend(
        self,
        query: torch.Tensor,
        cache: KVCache,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        """Attention of query [num_tokens, num_q_heads, head_dim]; the result has its shape and dtype."""
        ...


def _numba_plan(
    block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int
) -> AttentionPlan:
    from paged_kernels.numba_backend import NumbaPlan  # numba is heavy, and of no use on a GPU

    return NumbaPlan(block_tables, context_lens, query_start_loc, block_size)


# Backend name -> plan builder. A caller names the backend; there is no fall-back from one to another.
BACKENDS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], AttentionPlan]] = {
    "torch": TorchPlan, "numba": _numba_plan,
}


def plan_attention(
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    block_size: int,
    *,
    backend: str = "torch",
) -> AttentionPlan:
    """Plan the attention of one batch. Shapes as in the module's docstring. Raises ValueError for what cannot be."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}, expected one of {sorted(BACKENDS)}")
    num_seqs = context_lens.shape[0]
    if block_tables.dim() != 2 or block_tables.shape[0] != num_seqs or query_start_loc.shape != (num_seqs + 1,):
        raise ValueError(
            f"block_tables {list(block_tables.shape)}, context_lens {list(context_lens.shape)} and query_start_loc "
            f"{list(query_start_loc.shape)} do not agree, expected [n, max_blocks], [n] and [n + 1]"
        )
    return BACKENDS[backend](block_tables, context_lens, query_start_loc, block_size)


def warm_up(storage: torch.dtype, query: torch.dtype, *, backend: str) -> None:
    """Compile what `backend` needs for a cache of dtype `storage` on the CPU under queries of dtype `query`.

    Without it the first step waits for the compiler: seconds, or less than one where an earlier process compiled.
    """
    if backend == "numba":
        from paged_kernels import numba_backend

        numba_backend.warm_up(storage, query)


def paged_attention(
    query: torch.Tensor,
    cache: KVCache,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    backend: str = "torch",
) -> torch.Tensor:
    """Causal attention of query [num_tokens, num_q_heads, head_dim] over the paged cache; same shape and dtype out.

    num_q_heads is a multiple of num_kv_heads: query head h reads KV head h // (num_q_heads // num_kv_heads).
    """
    plan = plan_attention(block_tables, context_lens, query_start_loc, cache.key.shape[1], backend=backend)
    return plan.attend(query, cache, scale=scale, window=window, soft_cap=soft_cap)
