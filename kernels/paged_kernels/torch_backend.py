"""Paged attention in plain torch, for any device: gather the live slots of a batch, then dense attention on them.

Decodes (one query row each) run together, padded to the longest of their group; groups keep the padding below the
live part. Prefills run one sequence at a time. Padding never reads a dead slot: behind its last position a row reads
its own first one again, since a masked weight of zero times a NaN value would still be NaN.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from paged_kernels.cache import KVCache, dequantise

_SMALLEST_GROUP_CONTEXT = 64  # decodes shorter than this share one group: splitting them costs more than padding


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    rows: torch.Tensor   # [n] int64: query rows
    slots: torch.Tensor  # [n * width] int64: slot of each padded position
    mask: torch.Tensor   # [n, 1, 1, width] bool: True where the position is live
    width: int


@dataclass(frozen=True, slots=True)
class _Prefill:
    start: int           # first query row
    stop: int
    slots: torch.Tensor  # [width] int64: the positions that any row sees
    mask: torch.Tensor   # [query_len, width] bool: row j sees the position
    is_causal: bool      # the mask is the plain triangle, of which dense attention computes the lower half alone


@dataclass(frozen=True, slots=True)
class _Gathers:
    """What one window length reads."""

    decodes: list[_DecodeGroup]
    prefills: list[_Prefill]


class TorchPlan:
    """The gathers of one batch, made once for each window length. Arguments as in `paged_kernels.attention`.

    With `seqs` the plan is for these sequences of the batch alone.
    """

    def __init__(
        self, block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int,
        *, seqs: Sequence[int] | None = None,
    ) -> None:
        self._tables, self._block_size = block_tables.long(), block_size
        self._contexts, self._starts = context_lens.tolist(), query_start_loc.tolist()
        for seq, context in enumerate(self._contexts):
            query_len = self._starts[seq + 1] - self._starts[seq]
            if not 1 <= query_len <= context:
                raise ValueError(f"sequence {seq} has {query_len} query rows for a context of {context} positions")
        self._seqs = range(len(self._contexts)) if seqs is None else seqs
        self._longest = max((self._contexts[seq] for seq in self._seqs), default=0)
        self._gathers: dict[int, _Gathers] = {}

    def attend(
        self,
        query: torch.Tensor,
        cache: KVCache,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> torch.Tensor:
        """See `paged_kernels.attention.AttentionPlan.attend`."""
        out = torch.empty_like(query)
        self.attend_into(out, query, cache, scale=scale, window=window, soft_cap=soft_cap)
        return out

    def attend_into(
        self, out: torch.Tensor, query: torch.Tensor, cache: KVCache, *, scale: float, window: int | None,
        soft_cap: float | None,
    ) -> None:
        """`attend` into `out`, like query; rows of sequences that the plan is not for stay as they are."""
        reach = self._longest if window is None else min(window, self._longest)
        gathers = self._gathers.get(reach)
        if gathers is None:
            gathers = self._gathers[reach] = self._plan(reach)
        for group in gathers.decodes:
            out[group.rows] = _attend_decodes(group, query, cache, scale, soft_cap)
        for prefill in gathers.prefills:
            out[prefill.start : prefill.stop] = _attend_prefill(prefill, query, cache, scale, soft_cap)

    def _plan(self, window: int) -> _Gathers:
        if window < 1:
            raise ValueError(f"a window of {window} positions, expected at least 1 or None")
        groups: dict[int, list[int]] = {}
        prefills = []
        for seq in self._seqs:
            if self._starts[seq + 1] - self._starts[seq] > 1:
                prefills.append(self._prefill(seq, window))
            else:
                width = max(min(self._contexts[seq], window), _SMALLEST_GROUP_CONTEXT)
                groups.setdefault((width - 1).bit_length(), []).append(seq)
        return _Gathers([self._decode_group(seqs, window) for seqs in groups.values()], prefills)

    def _slots(self, tables: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        blocks = torch.gather(tables, 1, positions // self._block_size)
        return blocks * self._block_size + positions % self._block_size

    def _prefill(self, seq: int, window: int) -> _Prefill:
        context, start, stop = self._contexts[seq], self._starts[seq], self._starts[seq + 1]
        first_query = context - (stop - start)
        seen = torch.arange(max(0, first_query - window + 1), context, device=self._tables.device)
        own = torch.arange(first_query, context, device=self._tables.device)[:, None]
        mask = seen <= own
        if window < context:
            mask &= seen > own - window
        is_causal = first_query == 0 and window >= context
        return _Prefill(start, stop, self._slots(self._tables[seq, None], seen[None])[0], mask, is_causal)

    def _decode_group(self, seqs: list[int], window: int) -> _DecodeGroup:
        live = [min(self._contexts[seq], window) for seq in seqs]
        width, device = max(live), self._tables.device
        first = torch.tensor([self._contexts[seq] - n for seq, n in zip(seqs, live, strict=True)], device=device)
        offsets = torch.arange(width, device=device)
        mask = offsets < torch.tensor(live, device=device)[:, None]
        slots = self._slots(self._tables[seqs], first[:, None] + offsets * mask)
        rows = torch.tensor([self._starts[seq] for seq in seqs], device=device)
        return _DecodeGroup(rows, slots.flatten(), mask[:, None, None, :], width)


_local = threading.local()  # what a gather is written into: new memory for each would cost more than the gather


def _workspace(role: str, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Scratch memory [rows, width], this thread's, valid until it is asked for again in the same role."""
    key = f"{role} {dtype} {device}"
    kept: torch.Tensor | None = getattr(_local, key, None)
    if kept is None or kept.numel() < rows * width:
        with torch.inference_mode(False):  # or the next caller could only write into it where this one is
            kept = torch.empty(rows * width * 3 // 2, dtype=dtype, device=device)  # contexts grow a token a step
        setattr(_local, key, kept)
    return kept[: rows * width].view(rows, width)


def _gather(
    role: str, stored: torch.Tensor, scale: torch.Tensor | None, slots: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Real values [len(slots), num_kv_heads, head_dim] of the slots, valid until the next gather in this role.

    One row a slot: a plain copy of adjacent bytes.
    """
    heads, head_dim = stored.shape[2:]
    rows = _workspace(role, len(slots), heads * head_dim, stored.dtype, stored.device)
    torch.index_select(stored.view(-1, heads * head_dim), 0, slots, out=rows)
    rows = rows.view(-1, heads, head_dim)
    if scale is None:
        return rows.to(dtype)
    return dequantise(rows, scale.view(-1, heads).index_select(0, slots), dtype)


def _halves(cache: KVCache) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    yield "key", cache.key, cache.key_scale
    yield "value", cache.value, cache.value_scale


def _attend_decodes(
    group: _DecodeGroup, query: torch.Tensor, cache: KVCache, scale: float, soft_cap: float | None
) -> torch.Tensor:
    num_kv_heads = cache.key.shape[2]
    n, num_q_heads, head_dim = len(group.rows), query.shape[1], query.shape[2]
    # The query heads of one KV head stand where attention has its query positions: no copy of K and V per head.
    q = query.index_select(0, group.rows).view(n, num_kv_heads, num_q_heads // num_kv_heads, head_dim)
    k, v = (
        _gather(role, stored, scales, group.slots, query.dtype).view(n, group.width, num_kv_heads, -1).transpose(1, 2)
        for role, stored, scales in _halves(cache)
    )  # [n, num_kv_heads, width, head_dim]
    return _softmax_attention(q, k, v, group.mask, scale, soft_cap).reshape(n, num_q_heads, head_dim)


def _attend_prefill(
    prefill: _Prefill, query: torch.Tensor, cache: KVCache, scale: float, soft_cap: float | None
) -> torch.Tensor:
    num_kv_heads = cache.key.shape[2]
    rows = query[prefill.start : prefill.stop]  # [query_len, num_q_heads, head_dim]
    groups = rows.shape[1] // num_kv_heads
    q = rows.view(len(rows), num_kv_heads, groups, -1).permute(1, 2, 0, 3)  # [num_kv_heads, group, query_len, head_dim]
    k, v = (
        _gather(role, stored, scales, prefill.slots, query.dtype).transpose(0, 1)[:, None].expand(-1, groups, -1, -1)
        for role, stored, scales in _halves(cache)
    )  # [num_kv_heads, group, width, head_dim]
    if prefill.is_causal and soft_cap is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        out = _softmax_attention(q, k, v, prefill.mask, scale, soft_cap)
    return out.permute(2, 0, 1, 3).reshape(rows.shape)


def _softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float, soft_cap: float | None
) -> torch.Tensor:
    """Dense attention of q [a, b, m, d] over k, v [a, b, width, d]; mask, True where seen, broadcasts over a and b."""
    if soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * (scale / soft_cap)
    weights = scores.tanh_().mul_(soft_cap).masked_fill_(~mask, -torch.inf).softmax(-1)
    return (weights @ v.to(wide)).to(q.dtype)
