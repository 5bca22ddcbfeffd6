"""From a batch to work items: which rows over which positions, and which partial results make one row.

Only numpy, no kernel. Splits lie at fixed positions of the context, so that a sequence is cut alike in any batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paged_kernels.triton_backend.tiles import NO_SPLIT, ROWS_OF_EACH_TILE, SPLIT_ROWS, Geometry, Tile, tile_for

Ints = NDArray[np.int64]

# Columns of a work item. Positions [full_begin, full_end) are whole tiles that every row sees all of; first_part is the
# row of the partial results that its first query row goes to, or -1: the item is the only one over its rows.
ITEM = ("first_row", "num_rows", "seq", "begin", "end", "full_begin", "full_end", "first_part")
_FIRST_PART = ITEM.index("first_part")


class Batch(NamedTuple):
    """What a plan knows of its batch, on the host."""

    contexts: Ints  # [num_seqs]
    starts: Ints    # [num_seqs + 1]: query rows of each sequence
    shared_prefix_len: int = 0

    @property
    def num_rows(self) -> int:
        """Query rows of all sequences."""
        return int(self.starts[-1])

    def positions(self) -> Ints:
        """[num_rows] position of each query row; negative where its context is empty."""
        owner = np.repeat(np.arange(len(self.contexts)), np.diff(self.starts))
        return self.contexts[owner] - self.starts[1:][owner] + np.arange(self.num_rows)


class Schedule(NamedTuple):
    """All work of one batch for one window."""

    launches: list[tuple[Tile, Ints]]  # items [n, 8] of each tile
    part_starts: Ints                  # [num_rows + 1]: row r is made of part_rows[part_starts[r] : part_starts[r + 1]]
    part_rows: Ints                    # rows of the partial results; none where an item stands alone

    @property
    def num_parts(self) -> int:
        """Rows of partial results."""
        return len(self.part_rows)


def schedule(batch: Batch, geometry: Geometry, window: int | None, *, target: str = False) -> Schedule:
    """The work items of a batch. `window` in positions, None: no bound."""
    num_rows = np.diff(batch.starts)
    launches = []
    *bounds, many = ROWS_OF_EACH_TILE
    bounds.append(max(many, int(num_rows.max(initial=0))))
    for fewest, most in zip([1, *(bound + 1 for bound in bounds[:-1])], bounds, strict=True):
        seqs = np.flatnonzero((num_rows >= fewest) & (num_rows <= most))
        if len(seqs):
            tile = tile_for(most, geometry, target=target)
            items = _items(batch, seqs, tile, geometry.group, window)
            if tile.split == NO_SPLIT:  # a row has one item here: no order of parts to keep
                items = _longest_first(items)
            launches.append((tile, items))
    if batch.shared_prefix_len and batch.num_rows:
        tile = tile_for(SPLIT_ROWS, geometry, target=target)
        launches.insert(0, (tile, _prefix_items(batch, tile, geometry.group, window)))
    return Schedule(launches, *_parts(batch, [items for _, items in launches]))


def _items(batch: Batch, seqs: Ints, tile: Tile, group: int, window: int | None) -> Ints:
    """Items of these sequences, behind the shared prefix, in order of sequence, rows and positions."""
    num_rows = np.diff(batch.starts)[seqs]
    rows = tile.rows(group)
    tiles = -(-num_rows // rows)
    owner, number = _expand(tiles)
    first = number * rows
    count = np.minimum(rows, num_rows[owner] - first)
    first_position = batch.contexts[seqs][owner] - num_rows[owner] + first
    ranges = _Ranges(first_position, first_position + count - 1, batch.shared_prefix_len, None, window)
    return _split(batch.starts[seqs][owner] + first, count, seqs[owner], ranges, tile,
                  shared=batch.shared_prefix_len > 0)


def _longest_first(items: Ints) -> Ints:
    """Programs start in this order: a long item that starts last would run on alone."""
    begin, end = items[:, ITEM.index("begin")], items[:, ITEM.index("end")]
    return items[np.argsort(begin - end, kind="stable")]


def _prefix_items(batch: Batch, tile: Tile, group: int, window: int | None) -> Ints:
    """Items of all rows over the shared prefix, read through the table of the sequence with the earliest row.

    What any row sees is live there: behind a window, and where a sequence has no rows, a table may hold anything.
    """
    rows = tile.rows(group)
    first = np.arange(0, batch.num_rows, rows)
    count = np.minimum(rows, batch.num_rows - first)
    positions = batch.positions()
    reader = np.searchsorted(batch.starts, positions.argmin(), side="right") - 1
    lowest, highest = (reduce.reduceat(positions, first) for reduce in (np.minimum, np.maximum))
    ranges = _Ranges(lowest, highest, 0, batch.shared_prefix_len, window)
    return _split(first, count, np.full_like(first, reader), ranges, tile, shared=True)


class _Ranges(NamedTuple):
    """Which positions tiles of rows see: up to a row's own, inside its window, and in [at_least, below)."""

    lowest: Ints   # position of the tile's first row
    highest: Ints  # and of its last
    at_least: int
    below: int | None
    window: int | None


def _split(first_row: Ints, num_rows: Ints, seq: Ints, see: _Ranges, tile: Tile, *, shared: bool) -> Ints:
    """Items [n, 8] of row tiles, each cut at the multiples of the tile's split; at least one a tile, an empty one too.

    `shared`: other items than these stand over the same rows. The last column is 0 for an item that is not alone.
    """
    end = np.clip(see.highest + 1, 0, see.below)
    begin = np.full_like(end, see.at_least)
    if see.window is not None:
        begin = np.maximum(begin, see.lowest - see.window + 1)
    begin, end = np.where(begin < end, [begin, end], 0)
    splits = np.maximum(1, -(-end // tile.split) - begin // tile.split)
    owner, number = _expand(splits)
    cut = (begin // tile.split)[owner] + number
    begin, end = np.maximum(begin[owner], cut * tile.split), np.minimum(end[owner], (cut + 1) * tile.split)
    all_see_from = begin if see.window is None else np.maximum(begin, see.highest[owner] - see.window + 1)
    full_begin = -(-all_see_from // tile.tile) * tile.tile
    full_end = np.minimum(end, see.lowest[owner] + 1) // tile.tile * tile.tile
    none = full_end <= full_begin
    full_begin, full_end = (np.where(none, begin // tile.tile * tile.tile, bound) for bound in (full_begin, full_end))
    first_part = np.where((splits[owner] == 1) & (not shared), -1, 0)
    return np.stack([first_row[owner], num_rows[owner], seq[owner], begin, end, full_begin, full_end, first_part], 1)


def _parts(batch: Batch, launches: list[Ints]) -> tuple[Ints, Ints]:
    """Give each item that is not alone its rows of the partial results; (part_starts, part_rows) of `Schedule`."""
    items = np.concatenate(launches) if launches else np.zeros((0, len(ITEM)), np.int64)
    shared = items[:, _FIRST_PART] >= 0
    counts = np.where(shared, items[:, 1], 0)
    firsts = counts.cumsum() - counts
    at = 0
    for launch in launches:
        mine = slice(at, at + len(launch))
        launch[:, _FIRST_PART] = np.where(shared[mine], firsts[mine], -1)
        at += len(launch)
    owner, number = _expand(counts)
    rows = items[owner, 0] + number
    order = np.argsort(rows, kind="stable")  # parts of a row stay in the order of the items
    per_row = np.bincount(rows, minlength=batch.num_rows)
    return np.concatenate([[0], per_row.cumsum()]), order


def _expand(counts: Ints) -> tuple[Ints, Ints]:
    """For counts [2, 0, 3]: which entry each belongs to [0, 0, 2, 2, 2], and its number there [0, 1, 0, 1, 2]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)
