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
from paged_kernels.scoring import Scoring

_SMALLEST_GROUP_CONTEXT = 64  # decodes shorter than this share one group: splitting them costs more than padding


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    rows: torch.Tensor      # [n] int64: query rows
    slots: torch.Tensor     # [n * width] int64: slot of each padded position
    mask: torch.Tensor      # [n, 1, 1, width] bool: True where the position is live
    distance: torch.Tensor  # [n, 1, 1, width] int64: key position minus query position
    width: int


@dataclass(frozen=True, slots=True)
class _Prefill:
    start: int              # first query row
    stop: int
    seen: torch.Tensor      # [width] int64: the positions that any row sees
    slots: torch.Tensor     # [width] int64: their slots
    rows: torch.Tensor      # [query_len, 1] int64: the rows' own positions
    mask: torch.Tensor      # [query_len, width] bool: row j sees the position
    is_causal: bool         # the mask is the plain triangle, of which dense attention computes the lower half alone

    def distance(self) -> torch.Tensor:
        """[query_len, width] int64: key position minus query position. As large as eight masks, so it is not kept."""
        return self.seen - self.rows


@dataclass(frozen=True, slots=True)
class _Gathers:
    """What one window length reads."""

    decodes: list[_DecodeGroup]
    prefills: list[_Prefill]


class TorchPlan:
    """The gathers of one batch, made once for each window length. Arguments as in `paged_kernels.attention`.

    context_lens and query_start_loc on the host. With `seqs` the plan is for these sequences of the batch alone.
    """

    def __init__(
        self, block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int,
        shared_prefix_len: int = 0, *, seqs: Sequence[int] | None = None,
    ) -> None:
        self._tables, self._block_size = block_tables.long(), block_size
        self._contexts, self._starts = context_lens.tolist(), query_start_loc.tolist()
        self._seqs = range(len(self._contexts)) if seqs is None else seqs
        self._longest = max((self._contexts[seq] for seq in self._seqs), default=0)
        self._gathers: dict[int, _Gathers] = {}

    def whole_layers(self, num_weights: int) -> None:
        """There are none."""

    def describe(self) -> str:
        """See `paged_kernels.attention.BackendPlan`."""
        return f"{len(self._seqs)} sequences in torch on {self._tables.device.type}"

    def run(
        self, query: torch.Tensor, cache: KVCache, scoring: Scoring, *, with_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `paged_kernels.attention.BackendPlan`."""
        out = query.new_zeros(*query.shape[:2], cache.value.shape[3])
        lse = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32) if with_lse else None
        self.run_into(out, lse, query, cache, scoring)
        return out, lse

    def run_into(
        self, out: torch.Tensor, lse: torch.Tensor | None, query: torch.Tensor, cache: KVCache, scoring: Scoring
    ) -> None:
        """`run` into `out` and `lse`; rows that attend to nothing, or that the plan is not for, stay as they are."""
        reach = self._longest if scoring.window is None else min(scoring.window, self._longest)
        gathers = self._gathers.get(reach)
        if gathers is None:
            gathers = self._gathers[reach] = self._plan(reach)
        for group in gathers.decodes:
            out[group.rows], group_lse = _attend_decodes(group, query, cache, scoring, lse is not None)
            if lse is not None:
                lse[group.rows] = group_lse
        for prefill in gathers.prefills:
            rows = slice(prefill.start, prefill.stop)
            out[rows], prefill_lse = _attend_prefill(prefill, query, cache, scoring, lse is not None)
            if lse is not None:
                lse[rows] = prefill_lse

    def _plan(self, window: int) -> _Gathers:
        groups: dict[int, list[int]] = {}
        prefills = []
        for seq in self._seqs:
            num_rows = self._starts[seq + 1] - self._starts[seq]
            if num_rows == 0 or self._contexts[seq] == 0:
                continue
            if num_rows > 1:
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
        rows = torch.arange(first_query, context, device=self._tables.device)[:, None]
        mask = seen <= rows
        if window < context:
            mask &= seen > rows - window
        is_causal = first_query == 0 and window >= context
        slots = self._slots(self._tables[seq, None], seen[None])[0]
        return _Prefill(start, stop, seen, slots, rows, mask, is_causal)

    def _decode_group(self, seqs: list[int], window: int) -> _DecodeGroup:
        live = [min(self._contexts[seq], window) for seq in seqs]
        width, device = max(live), self._tables.device
        first = torch.tensor([self._contexts[seq] - n for seq, n in zip(seqs, live, strict=True)], device=device)
        offsets, num_live = torch.arange(width, device=device), torch.tensor(live, device=device)[:, None]
        mask = offsets < num_live
        slots = self._slots(self._tables[seqs], first[:, None] + offsets * mask)
        rows = torch.tensor([self._starts[seq] for seq in seqs], device=device)
        distance = offsets - num_live + 1
        return _DecodeGroup(rows, slots.flatten(), mask[:, None, None, :], distance[:, None, None, :], width)


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
    """Real values [len(slots), num_kv_heads, dim] of the slots, valid until the next gather in this role."""
    block_size, heads, dim = stored.shape[1:]
    if stored.is_contiguous():  # one row a slot: a plain copy of adjacent bytes
        rows = _workspace(role, len(slots), heads * dim, stored.dtype, stored.device)
        torch.index_select(stored.view(-1, heads * dim), 0, slots, out=rows)
        rows = rows.view(-1, heads, dim)
    else:
        rows = stored.view(_BYTES.get(stored.dtype, stored.dtype))[slots // block_size, slots % block_size]
        rows = rows.view(stored.dtype)
    if scale is None:
        return rows.to(dtype)
    if scale.dim() == 3:
        scale = scale[slots // block_size, slots % block_size]
    return dequantise(rows, scale.expand(rows.shape[:2]), dtype)


_BYTES = {torch.float8_e4m3fn: torch.uint8}  # torch picks fp8 by index only as the bytes it is


def _halves(cache: KVCache) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    yield "key", cache.key, cache.key_scale
    yield "value", cache.value, cache.value_scale


_Attended = tuple[torch.Tensor, torch.Tensor | None]


def _attend_decodes(
    group: _DecodeGroup, query: torch.Tensor, cache: KVCache, scoring: Scoring, with_lse: bool
) -> _Attended:
    num_kv_heads = cache.key.shape[2]
    n, num_q_heads, head_dim = len(group.rows), query.shape[1], query.shape[2]
    # The query heads of one KV head stand where attention has its query positions: no copy of K and V per head.
    q = query.index_select(0, group.rows).view(n, num_kv_heads, num_q_heads // num_kv_heads, head_dim)
    k, v = (
        _gather(role, stored, scales, group.slots, query.dtype).view(n, group.width, num_kv_heads, -1).transpose(1, 2)
        for role, stored, scales in _halves(cache)
    )  # [n, num_kv_heads, width, dim]
    slopes = scoring.alibi_slopes
    # [n, num_kv_heads, group, width]
    bias = None if slopes is None else slopes.view(num_kv_heads, -1, 1) * group.distance
    out, lse = _dense(q, k, v, group.mask, bias, scoring, with_lse)
    return out.reshape(n, num_q_heads, -1), None if lse is None else lse.reshape(n, num_q_heads)


def _attend_prefill(
    prefill: _Prefill, query: torch.Tensor, cache: KVCache, scoring: Scoring, with_lse: bool
) -> _Attended:
    num_kv_heads = cache.key.shape[2]
    rows = query[prefill.start : prefill.stop]  # [query_len, num_q_heads, head_dim]
    groups = rows.shape[1] // num_kv_heads
    q = rows.view(len(rows), num_kv_heads, groups, -1).permute(1, 2, 0, 3)  # [num_kv_heads, group, query_len, head_dim]
    k, v = (
        _gather(role, stored, scales, prefill.slots, query.dtype).transpose(0, 1)[:, None].expand(-1, groups, -1, -1)
        for role, stored, scales in _halves(cache)
    )  # [num_kv_heads, group, width, dim]
    slopes = scoring.alibi_slopes
    bias = None if slopes is None else slopes.view(num_kv_heads, groups, 1, 1) * prefill.distance()
    if prefill.is_causal and scoring.soft_cap is None and bias is None and not with_lse:
        out, lse = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scoring.scale), None
    else:
        out, lse = _dense(q, k, v, prefill.mask, bias, scoring, with_lse)
    out = out.permute(2, 0, 1, 3).reshape(len(rows), rows.shape[1], -1)
    return out, None if lse is None else lse.permute(2, 0, 1).reshape(rows.shape[:2])


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor | None,
    scoring: Scoring, with_lse: bool,
) -> _Attended:
    """Dense attention of q [a, b, m, d] over k, v [a, b, width, d], and LSE [a, b, m] if asked for.

    mask, True where seen, and bias, added to the scores, broadcast to [a, b, m, width]. Each row sees something.
    """
    if scoring.soft_cap is None and bias is None and not with_lse:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scoring.scale), None
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2)
    if scoring.soft_cap is None:
        scores *= scoring.scale
    else:
        scores = scores.mul_(scoring.scale / scoring.soft_cap).tanh_().mul_(scoring.soft_cap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill_(~mask, -torch.inf)
    out = (scores.softmax(-1) @ v.to(wide)).to(q.dtype)
    return out, scores.logsumexp(-1).float() if with_lse else None
