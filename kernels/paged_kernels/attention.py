"""The seam: attention over a KV cache in blocks.

One canonical layout, for keys and values alike (`paged_kernels.cache.KVCache`):

    cache.key        [num_blocks, block_size, num_kv_heads, head_dim]
    cache.value      [num_blocks, block_size, num_kv_heads, value_dim]
    slot             block * block_size + offset in the block
    block_tables     [num_seqs, max_blocks] int: block b of sequence s holds its positions
                     [b * block_size, (b + 1) * block_size)
    context_lens     [num_seqs] int: live positions of each sequence, its new tokens included
    query_start_loc  [num_seqs + 1] int, starts with 0: sequence s owns the query rows
                     [query_start_loc[s], query_start_loc[s + 1]), its last positions

The keys and values of the query rows are already written: row j of n stands at position p = context_len - n + j and
attends to the positions up to and including its own (`paged_kernels.scoring` says how). Slots that no row attends to,
and table entries past the context or wholly behind the window, are never read: they may hold anything, NaN too. A
sequence may have no query rows. Its context may be empty: then its rows attend to nothing, their output is 0 and the
log of their sum of exponentials is -inf.

A plan holds what depends on the batch alone, so that a model builds it once a step and uses it in each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from paged_kernels.cache import KVCache, check_move_backend
from paged_kernels.layer import WholeLayer, WholeLayers
from paged_kernels.scoring import Scoring
from paged_kernels.torch_backend import TorchPlan


class BackendPlan(Protocol):
    """What a backend makes of a batch."""

    def run(
        self, query: torch.Tensor, cache: KVCache, scoring: Scoring, *, with_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(output, LSE or None), as `AttentionPlan` gives them.

        Raises ValueError, before it computes, for what the backend cannot do.
        """
        ...

    def describe(self) -> str:
        """Which part of the batch runs where."""
        ...

    def whole_layers(self, num_weights: int) -> WholeLayers | None:
        """What runs whole layers of so many weights over this batch, attention among the rest; None: it is no use."""
        ...


class AttentionPlan:
    """One step's attention: what it needs to know about its batch, for all layers."""

    def __init__(self, plan: BackendPlan, backend: str) -> None:
        self._plan, self.backend = plan, backend

    def describe(self) -> str:
        """Which part of the batch runs where: what really ran, for reports."""
        return self._plan.describe()

    def whole_layers(self, num_weights: int) -> WholeLayers | None:
        """What runs whole layers over this batch, faster than layers that call `attend`; None if there is nothing.

        num_weights: of a layer, as `WholeLayer` counts them.
        """
        return self._plan.whole_layers(num_weights)

    @property
    def move_backend(self) -> str:
        """The backend that writes keys and values where attention runs in this plan's."""
        return move_backend(self.backend)

    def attend(
        self, query: torch.Tensor, cache: KVCache, *, scale: float, window: int | None = None,
        soft_cap: float | None = None, alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of query [num_tokens, num_q_heads, head_dim]: [num_tokens, num_q_heads, value_dim] in its dtype.

        num_q_heads is a multiple of num_kv_heads: query head h reads KV head h // (num_q_heads // num_kv_heads).
        """
        scoring = Scoring(scale, window, soft_cap, alibi_slopes)
        scoring.check(query.shape[1])
        return self._plan.run(query, cache, scoring, with_lse=False)[0]

    def attend_with_lse(
        self, query: torch.Tensor, cache: KVCache, *, scale: float, window: int | None = None,
        soft_cap: float | None = None, alibi_slopes: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`attend`, and the natural log of the sum of exp(score) over what is attended to.

        lse [num_tokens, num_q_heads] float32: with it, attention over parts of a context is merged (`merge_states`).
        """
        scoring = Scoring(scale, window, soft_cap, alibi_slopes)
        scoring.check(query.shape[1])
        out, lse = self._plan.run(query, cache, scoring, with_lse=True)
        assert lse is not None
        return out, lse


def _numba_plan(
    block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int,
    shared_prefix_len: int,
) -> BackendPlan:
    from paged_kernels.numba_backend import NumbaPlan  # numba is heavy, and of no use on a GPU

    return NumbaPlan(block_tables, context_lens, query_start_loc, block_size, shared_prefix_len)


def _triton_plan(
    block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int,
    shared_prefix_len: int,
) -> BackendPlan:
    from paged_kernels.triton_backend.plan import TritonPlan  # triton is heavy, and not on every system

    return TritonPlan(block_tables, context_lens, query_start_loc, block_size, shared_prefix_len)


# Backend name -> plan builder. A caller names the backend; there is no fall-back from one to another.
BACKENDS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, int], BackendPlan]] = {
    "torch": TorchPlan, "numba": _numba_plan, "triton": _triton_plan,
}


def move_backend(backend: str) -> str:
    """Which backend writes keys and values and copies blocks where attention runs in `backend`."""
    return "triton" if backend == "triton" else "torch"


def plan_attention(
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    block_size: int,
    *,
    backend: str = "torch",
    shared_prefix_len: int = 0,
) -> AttentionPlan:
    """Plan the attention of one batch. Shapes as in the module's docstring. Raises ValueError for what cannot be.

    context_lens and query_start_loc are needed on the host: on a device they are fetched, which waits for it.
    shared_prefix_len: the first so many positions of all sequences, whole blocks, stand in the same blocks. Backend
    "triton" reads them once for all rows (cascade); the others read them for each sequence. It costs batch invariance.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}, expected one of {sorted(BACKENDS)}")
    num_seqs = context_lens.shape[0]
    if block_tables.dim() != 2 or block_tables.shape[0] != num_seqs or query_start_loc.shape != (num_seqs + 1,):
        raise ValueError(
            f"block_tables {list(block_tables.shape)}, context_lens {list(context_lens.shape)} and query_start_loc "
            f"{list(query_start_loc.shape)} do not agree, expected [n, max_blocks], [n] and [n + 1]"
        )
    contexts, starts = context_lens.cpu().long(), query_start_loc.cpu().long()
    _check_batch(contexts.numpy(), starts.numpy(), block_tables.shape[1] * block_size)
    if shared_prefix_len and (
        shared_prefix_len < 0 or shared_prefix_len % block_size
        or bool((contexts - starts.diff() < shared_prefix_len).any())
    ):
        raise ValueError(f"a shared prefix of {shared_prefix_len} positions: expected whole blocks of {block_size}, "
                         "with all query rows behind them")
    return AttentionPlan(BACKENDS[backend](block_tables, contexts, starts, block_size, shared_prefix_len), backend)


def _check_batch(contexts: NDArray[np.int64], starts: NDArray[np.int64], room: int) -> None:
    rows = starts[1:] - starts[:-1]
    bad = (rows < 0) | (contexts < 0) | (contexts > room) | ((rows > contexts) & (contexts > 0))
    if bad.any():
        seq = int(bad.argmax())
        raise ValueError(f"sequence {seq} has {int(rows[seq])} query rows for a context of {int(contexts[seq])} "
                         f"positions, with a block table for {room}")


def warm_up(storage: torch.dtype, query: torch.dtype, *, backend: str, whole: Sequence[WholeLayer] = ()) -> None:
    """Compile what `backend` needs for a CPU cache of dtype `storage`, queries of dtype `query`, and `whole` layers.

    Without it the first step waits for the compiler: seconds, or less than one where an earlier process compiled.
    """
    if backend == "numba":
        from paged_kernels import numba_backend, numba_layer

        numba_backend.warm_up(storage, query)
        if whole:
            numba_layer.warm_up(whole[0])


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
    alibi_slopes: torch.Tensor | None = None,
    backend: str = "torch",
) -> torch.Tensor:
    """Plan and attend at once; see `plan_attention` and `AttentionPlan.attend`."""
    plan = plan_attention(block_tables, context_lens, query_start_loc, cache.key.shape[1], backend=backend)
    return plan.attend(query, cache, scale=scale, window=window, soft_cap=soft_cap, alibi_slopes=alibi_slopes)


def merge_states(
    outs: torch.Tensor, lses: torch.Tensor, *, backend: str = "torch"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over a whole from attention over its parts: (out [rows, heads, dim] in outs' dtype, lse [rows, heads]).

    outs [parts, rows, heads, dim], lses [parts, rows, heads] float32; a part that holds nothing has lse -inf.
    """
    check_move_backend(backend)
    if outs.dim() != 4 or lses.shape != outs.shape[:3]:
        raise ValueError(f"outs {list(outs.shape)} and lses {list(lses.shape)} do not agree, expected "
                         "[parts, rows, heads, dim] and [parts, rows, heads]")
    if backend == "triton":
        from paged_kernels.triton_backend.launch import merge_all  # triton is heavy

        return merge_all(outs, lses)
    wide = torch.promote_types(outs.dtype, torch.float32)
    lses = lses.to(wide)
    lse = lses.logsumexp(0)
    # Where no part holds anything, -inf - -inf would be NaN.
    weights = (lses - torch.where(lse == -torch.inf, 0, lse)).exp()
    return (weights[..., None] * outs.to(wide)).sum(0).to(outs.dtype), lse.float()
