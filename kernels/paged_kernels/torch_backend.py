"""Paged attention in plain torch, for any device: gather the live slots of a batch, then dense attention on them.

Decodes (one query row each) run together, padded to the longest of their group; groups keep the padding below the
live part. Prefills run one sequence at a time. Padding never reads a dead slot: positions past the context read the
sequence's own first slot instead, since a masked weight of zero times a NaN value would still be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

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
    slots: torch.Tensor  # [context_len] int64
    mask: torch.Tensor   # [query_len, context_len] bool: row j sees position p


class TorchPlan:
    """The gathers of one batch. Arguments as in `paged_kernels.attention`."""

    def __init__(
        self, block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, block_size: int
    ) -> None:
        self._block_size = block_size
        device = block_tables.device
        contexts, starts = context_lens.tolist(), query_start_loc.tolist()
        groups: dict[int, list[int]] = {}
        self._prefills: list[_Prefill] = []
        for seq, context in enumerate(contexts):
            query_len = starts[seq + 1] - starts[seq]
            if not 1 <= query_len <= context:
                raise ValueError(f"sequence {seq} has {query_len} query rows for a context of {context} positions")
            if query_len == 1:
                groups.setdefault(max(context - 1, _SMALLEST_GROUP_CONTEXT - 1).bit_length(), []).append(seq)
            else:
                self._prefills.append(self._prefill(block_tables[seq], context, starts[seq], starts[seq + 1]))
        self._decodes = [
            self._decode_group(block_tables, context_lens, query_start_loc, torch.tensor(seqs, device=device))
            for seqs in groups.values()
        ]

    def _slots(self, tables: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        blocks = torch.gather(tables.long(), 1, positions // self._block_size)
        return blocks * self._block_size + positions % self._block_size

    def _prefill(self, table: torch.Tensor, context: int, start: int, stop: int) -> _Prefill:
        positions = torch.arange(context, device=table.device)
        own = torch.arange(context - (stop - start), context, device=table.device)
        return _Prefill(
            start, stop, self._slots(table[None], positions[None])[0], positions[None, :] <= own[:, None]
        )

    def _decode_group(
        self, block_tables: torch.Tensor, context_lens: torch.Tensor, query_start_loc: torch.Tensor, seqs: torch.Tensor
    ) -> _DecodeGroup:
        contexts = context_lens[seqs].long()
        width = int(contexts.max())
        positions = torch.arange(width, device=seqs.device).expand(len(seqs), width)
        live = positions < contexts[:, None]
        slots = self._slots(block_tables[seqs], positions * live)
        return _DecodeGroup(query_start_loc[seqs].long(), slots.flatten(), live[:, None, None, :], width)

    def attend(
        self, query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `paged_kernels.attention.AttentionPlan.attend`."""
        out = torch.empty_like(query)
        for group in self._decodes:
            out[group.rows] = _attend_decodes(group, query, key_cache, value_cache, scale)
        for prefill in self._prefills:
            out[prefill.start : prefill.stop] = _attend_prefill(prefill, query, key_cache, value_cache, scale)
        return out


def _gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Rows [len(slots), num_kv_heads, head_dim] of the cache. One row a slot: a plain copy of adjacent bytes."""
    heads, head_dim = cache.shape[2:]
    return cache.view(-1, heads * head_dim).index_select(0, slots).view(-1, heads, head_dim)


def _attend_decodes(
    group: _DecodeGroup, query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, scale: float
) -> torch.Tensor:
    num_kv_heads = key_cache.shape[2]
    n, num_q_heads, head_dim = len(group.rows), query.shape[1], query.shape[2]
    # The query heads of one KV head stand where attention has its query positions: no copy of K and V per head.
    q = query.index_select(0, group.rows).view(n, num_kv_heads, num_q_heads // num_kv_heads, head_dim)
    k, v = (
        _gather(cache, group.slots).view(n, group.width, num_kv_heads, -1).transpose(1, 2)
        for cache in (key_cache, value_cache)
    )  # [n, num_kv_heads, width, head_dim]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scale)
    return out.reshape(n, num_q_heads, head_dim)


def _attend_prefill(
    prefill: _Prefill, query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, scale: float
) -> torch.Tensor:
    num_kv_heads = key_cache.shape[2]
    rows = query[prefill.start : prefill.stop]  # [query_len, num_q_heads, head_dim]
    groups = rows.shape[1] // num_kv_heads
    q = rows.view(len(rows), num_kv_heads, groups, -1).permute(1, 2, 0, 3)  # [num_kv_heads, group, query_len, head_dim]
    k, v = (
        _gather(cache, prefill.slots).transpose(0, 1)[:, None].expand(-1, groups, -1, -1)
        for cache in (key_cache, value_cache)
    )  # [num_kv_heads, group, context_len, head_dim]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=prefill.mask, scale=scale)
    return out.permute(2, 0, 1, 3).reshape(rows.shape)
