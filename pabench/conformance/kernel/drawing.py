"""Tensors from cases: always the same for the same case, drawn on the CPU and then moved.

Most queries are *needles*: so much like one key that its position gets most of the weight. To lose that position, or to
read it from the wrong place, then changes the result by as much as a value, far more than rounding does. The needles of
a row stand at its own position, at the first that it sees, and at edges of blocks and of tiles between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pabench.conformance.kernel.adapter import Batch, Cache
from pabench.conformance.kernel.cases import AttendCase, CacheForm
from pabench.conformance.kernel.layouts import (
    PlacedCache,
    as_bytes,
    fill_value,
    num_blocks_in,
    place_cache,
    torch_dtype,
)

_TILES = (16, 32, 64, 128, 256)
_MOST = 30.0  # of a needle's score: what lies above would only be rounded more


@dataclass(frozen=True, slots=True)
class Content:
    """A batch without blocks, as dense attention takes it: exact, in float64, a list entry a sequence."""

    queries: list[torch.Tensor]  # [query_len, num_q_heads, head_dim]
    keys: list[torch.Tensor]     # [context_len, num_kv_heads, head_dim]
    values: list[torch.Tensor]   # [context_len, num_kv_heads, value_dim]
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    slopes: torch.Tensor | None = None  # [num_q_heads]


@dataclass(frozen=True, slots=True)
class DrawnAttend:
    """Content, and the same in blocks."""

    content: Content
    batch: Batch
    placed: PlacedCache


@dataclass(frozen=True, slots=True)
class _Stored:
    """Keys or values of one sequence as stored [n, heads, dim], and their scale where there is one."""

    stored: torch.Tensor
    scale: torch.Tensor | None = None

    def real(self) -> torch.Tensor:
        """What they are, float64."""
        wide = self.stored.double()
        return wide if self.scale is None else wide * self.scale.double()[..., None]


def draw_attend(case: AttendCase, device: str = "cpu") -> DrawnAttend:
    """The batch of a case on `device`, its cache filled with what must not be read."""
    rng = torch.Generator().manual_seed(case.seed)
    given = [_given_scale(case.form, rng) for _ in range(2)]
    keys, values = _draw_stored(case, given, rng)
    content = Content([], [each.real() for each in keys], [each.real() for each in values], case.score_scale,
                      case.window, case.soft_cap, _slopes(case.num_q_heads) if case.alibi else None)
    content.queries.extend(_queries(case, content, rng))
    tables, num_blocks = _tables(case)
    placed = place_cache(case.form, num_blocks, device, case.fill)
    cache = _cache(placed, given, device)
    _poison_far(case, cache, tables)
    for seq, table in enumerate(tables.tolist()):
        first = _first_seen(case, seq)
        for part, scale, new in ((cache.key, placed.key_scale, keys[seq]),
                                 (cache.value, placed.value_scale, values[seq])):
            _scatter(part, new.stored, table, first)
            if scale is not None and new.scale is not None:
                _scatter(scale.view, new.scale, table, first)
    return DrawnAttend(content, _batch(case, content, cache, _tail(case, tables, num_blocks), device), placed)


def solo(batch: Batch, seqs: Sequence[int]) -> Batch:
    """The same batch with these sequences alone."""
    starts = batch.query_start_loc.tolist()
    rows = [row for seq in seqs for row in range(starts[seq], starts[seq + 1])]
    lens = torch.tensor([0, *(starts[seq + 1] - starts[seq] for seq in seqs)])
    at = torch.tensor(seqs, device=batch.query.device)
    return replace(
        batch, query=batch.query[torch.tensor(rows, dtype=torch.int64, device=batch.query.device)],
        block_tables=batch.block_tables[at], context_lens=batch.context_lens[at],
        query_start_loc=lens.cumsum(0).to(batch.query_start_loc),
    )


def _draw_stored(
    case: AttendCase, given: Sequence[torch.Tensor | None], rng: torch.Generator
) -> tuple[list[_Stored], list[_Stored]]:
    """Keys and values of all sequences, with scales of their own where none is given. The shared prefix is the same."""
    form = case.form
    halves: tuple[list[_Stored], list[_Stored]] = ([], [])
    for context in case.context_lens:
        for half, dim, scale in zip(halves, (form.head_dim, form.value_dim), given, strict=True):
            own = case.shared_prefix_len if half else 0
            new = _draw_half(form, dim, context - own, scale, rng)
            half.append(_behind(half[0], own, new) if own else new)
    return halves


def _behind(first: _Stored, length: int, new: _Stored) -> _Stored:
    """`new` behind the first `length` positions of another sequence."""
    stored = torch.cat([first.stored[:length], new.stored])
    if first.scale is None or new.scale is None:
        return _Stored(stored)
    return _Stored(stored, torch.cat([first.scale[:length], new.scale]))


def _draw_half(
    form: CacheForm, dim: int, length: int, given: torch.Tensor | None, rng: torch.Generator
) -> _Stored:
    numbers = torch.randn(length, form.num_kv_heads, dim, generator=rng)
    if not form.scales:
        return _Stored(numbers.to(torch_dtype(form.storage)))
    largest = 127 if form.storage == "int8" else 448
    stored = (numbers * (largest / 4)).clamp(-largest, largest)
    stored = (stored.round() if form.storage == "int8" else stored).to(torch_dtype(form.storage))
    if given is None:
        return _Stored(stored, _scales((length, form.num_kv_heads), largest, rng))
    return _Stored(stored, given.expand(length, form.num_kv_heads))


def _given_scale(form: CacheForm, rng: torch.Generator) -> torch.Tensor | None:
    """The scale that holds for the whole cache, [] or [num_kv_heads]."""
    if form.scales not in ("tensor", "head"):
        return None
    return _scales((form.num_kv_heads,) if form.scales == "head" else (), 127 if form.storage == "int8" else 448, rng)


def _scales(sizes: tuple[int, ...], largest: float, rng: torch.Generator) -> torch.Tensor:
    """Scales that make real values of size 1, times 1/2 to 2: no two alike."""
    return torch.exp2(torch.rand(sizes, generator=rng) * 2 - 1) * (4 / largest)


def _slopes(num_q_heads: int) -> torch.Tensor:
    """As ALiBi has them, 2^(-8 (h + 1) / num_q_heads); float32 as kernels get them."""
    return torch.exp2(-8 * torch.arange(1, num_q_heads + 1) / num_q_heads)


def _first_seen(case: AttendCase, seq: int) -> int:
    """The first position that any row of a sequence sees; behind the last where there is none."""
    context, rows = case.context_lens[seq], case.query_lens[seq]
    if case.shared_prefix_len:
        rows = max(rows, 1)  # others read the prefix
    if rows == 0:
        return context
    return 0 if case.window is None else max(0, context - rows - case.window + 1)


def _queries(case: AttendCase, content: Content, rng: torch.Generator) -> list[torch.Tensor]:
    """Queries in float64, with the values that they have in the case's dtype."""
    queries, number = [], 0 if torch.rand((), generator=rng) < 0.5 else int(torch.randint(4, (), generator=rng))
    for context, rows, keys in zip(case.context_lens, case.query_lens, content.keys, strict=True):
        query = torch.randn(rows, case.num_q_heads, case.form.head_dim, generator=rng, dtype=torch.float64)
        for row in range(rows if context else 0):
            position = context - rows + row
            for head in range(case.num_q_heads):
                needle = _needle(case, position, number, rng)
                number += 1
                if needle is not None:
                    key = keys[needle, head // case.group]
                    slope = 0.0 if content.slopes is None else float(content.slopes[head])
                    query[row, head] = key * _gain(case, key, position, needle, slope)
        queries.append(query.to(torch_dtype(case.dtype)).double())
    return queries


def _needle(case: AttendCase, position: int, number: int, rng: torch.Generator) -> int | None:
    """Which position the query at `position` is a needle for. None: for none."""
    first = 0 if case.window is None else max(0, position - case.window + 1)
    if number % 4 == 0:
        return position
    if number % 4 == 3 and number % 8 == 3:
        return None
    edges = [first, first + 1, position - 1, position // case.form.block_size * case.form.block_size]
    edges += [position // tile * tile - back for tile in _TILES for back in (0, 1)]
    edges += [int(torch.randint(first, position + 1, (), generator=rng))]
    inside = sorted({edge for edge in edges if first <= edge <= position})
    return inside[int(torch.randint(len(inside), (), generator=rng))]


def _gain(case: AttendCase, key: torch.Tensor, position: int, needle: int, slope: float) -> float:
    """What a key is multiplied with, so that its own score stands out among all that the row sees."""
    seen = position + 1 if case.window is None else min(position + 1, case.window)
    score = min(_MOST, math.log(seen) + 5 + slope * (position - needle))
    if case.soft_cap is not None:
        score = case.soft_cap * math.atanh(min(0.95, score / case.soft_cap))
    length = float(key.square().sum()) * case.score_scale
    return score / length if abs(length) > 1e-6 else 1.0


def _tables(case: AttendCase) -> tuple[torch.Tensor, int]:
    """Block tables whose unused entries are the poisoned block, and the number of blocks of the cache.

    Blocks are dealt out in random order, with some left over, all poisoned.
    """
    rng = torch.Generator().manual_seed(case.placement + 1)
    size, prefix = case.form.block_size, case.shared_prefix_len // case.form.block_size
    counts = [-(-context // size) for context in case.context_lens]
    pool = prefix + sum(count - prefix for count in counts) + 2 + case.placement % 3
    num_blocks = num_blocks_in(case.form, pool)
    order = (torch.randperm(pool, generator=rng) + num_blocks - pool).tolist()
    poison, shared = order.pop(), [order.pop() for _ in range(prefix)]
    tables = torch.full((len(counts), max(counts) + 2), poison)
    for seq, count in enumerate(counts):
        own = shared + [order.pop() for _ in range(count - prefix)]
        tables[seq, :count] = torch.tensor(own, dtype=torch.int64)
    return tables, num_blocks


def _tail(case: AttendCase, tables: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """The tables with what the case says in entries that no row needs: those behind the end, and behind the window."""
    size = case.form.block_size
    poison = int(tables[0, -1])
    value = {"poison": poison, "minus-one": -1, "beyond": num_blocks + 7}[case.tail]
    tables = tables.clone()
    for seq, context in enumerate(case.context_lens):
        tables[seq, -(-context // size):] = value
        behind = max(_first_seen(case, seq) // size, 0)
        if not case.shared_prefix_len:
            tables[seq, :behind] = value
    return tables


def _cache(placed: PlacedCache, given: Sequence[torch.Tensor | None], device: str) -> Cache:
    """The cache as adapters get it, with its scales a slot or those that are given for the whole."""
    scales = [own.view if own is not None else None if whole is None else whole.to(device)
              for own, whole in zip((placed.key_scale, placed.value_scale), given, strict=True)]
    return Cache(placed.key.view, placed.value.view, *scales)


def _poison_far(case: AttendCase, cache: Cache, tables: torch.Tensor) -> None:
    """A far cache is not filled: poison at least the blocks that tables name."""
    if case.form.layout != "far":
        return
    blocks = torch.unique(tables).to(cache.key.device)
    for part in cache:
        if part is not None and part.dim() >= 3:
            poison = torch.tensor(fill_value(part.dtype, case.fill)).to(part.dtype)
            as_bytes(part)[blocks] = as_bytes(poison).to(part.device)


def _scatter(part: torch.Tensor, rows: torch.Tensor, table: Sequence[int], first: int) -> None:
    """Put the rows [first, n) of a sequence into its slots of `part` [num_blocks, block_size, …]."""
    positions = torch.arange(first, len(rows))
    blocks = torch.tensor(table)[positions // part.shape[1]].to(part.device)
    as_bytes(part)[blocks, (positions % part.shape[1]).to(part.device)] = as_bytes(rows[first:].to(part.device))


def _batch(case: AttendCase, content: Content, cache: Cache, tables: torch.Tensor, device: str) -> Batch:
    query = torch.cat(content.queries).to(torch_dtype(case.dtype))
    starts = torch.tensor([0, *case.query_lens]).cumsum(0)
    lens = torch.tensor(case.context_lens)
    integer = torch.int64 if case.arguments == "int64" else torch.int32
    query, (tables, lens, starts) = query.to(device), (x.to(device, integer) for x in (tables, lens, starts))
    if case.arguments == "views":
        query, tables, lens = _as_views(query, tables, lens)
    slopes = None if content.slopes is None else content.slopes.to(device)
    return Batch(query, cache, tables, lens, starts, case.score_scale, case.window, case.soft_cap, slopes,
                 case.shared_prefix_len, case.with_lse)


def _as_views(
    query: torch.Tensor, tables: torch.Tensor, lens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same values in other strides: heads of a wider tensor, columns of a longer table, one length spread."""
    wide = query.new_full((query.shape[0], query.shape[1] + 2, query.shape[2]), torch.nan)
    wide[:, 1:-1] = query
    longer = tables.new_full((tables.shape[0], tables.shape[1] + 3), -1)
    longer[:, 2:-1] = tables
    if len(set(lens.tolist())) == 1:
        return wide[:, 1:-1], longer[:, 2:-1], lens[0].expand(len(lens))
    spaced = lens.new_zeros(len(lens) * 2)
    spaced[::2] = lens
    return wide[:, 1:-1], longer[:, 2:-1], spaced[::2]
