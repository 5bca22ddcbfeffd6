"""A block trace as a matrix of cells, for drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pabench.telemetry.block_trace import BlockTrace, State

UNKNOWN = 255  # state of a cell that lies outside of what was recorded
_STATES = 8    # a sequence and a state as one number: (seq + 1) * _STATES + state


@dataclass(frozen=True, slots=True)
class BlockMap:
    """[time bins, block bins] cells. A cell shows what held longest in it: of all (state, owner) the one with most
    block-seconds. So with one block a row and fine columns nothing is left out but what is shorter than a column.

    `blocks_per_row`: how many neighbouring blocks are one row; the last row may have fewer.
    """

    start_s: float                    # of the trace's time
    column_s: float
    blocks_per_row: int
    state: NDArray[np.uint8]          # State, or UNKNOWN
    owner: NDArray[np.int64]          # sequence id, -1 where there is none


def block_map(
    trace: BlockTrace, start_s: float, stop_s: float, *, max_columns: int = 600, max_rows: int = 256
) -> BlockMap:
    """The map of a trace between two of its moments, in `max_columns` columns. Raises ValueError on an empty time."""
    if not start_s < stop_s:
        raise ValueError(f"a map from {start_s} s to {stop_s} s")
    per_row = -(-trace.header.num_blocks // max_rows)
    num_rows = -(-trace.header.num_blocks // per_row)
    column_s = (stop_s - start_s) / max_columns
    state = np.full((max_columns, num_rows), UNKNOWN, dtype=np.uint8)
    owner = np.full((max_columns, num_rows), -1, dtype=np.int64)
    bounds = np.searchsorted(trace.block, np.arange(num_rows + 1) * per_row)
    for row in range(num_rows):
        mine = slice(bounds[row], bounds[row + 1])
        keys = (trace.seq[mine] + 1) * _STATES + trace.state[mine]
        columns, found = _longest(keys, (trace.start_s[mine] - start_s) / column_s,
                                  (trace.stop_s[mine] - start_s) / column_s, max_columns)
        state[columns, row] = found % _STATES
        owner[columns, row] = found // _STATES - 1
    return BlockMap(start_s, column_s, per_row, state, owner)


def _longest(
    keys: NDArray[np.int64], start: NDArray[np.float64], stop: NDArray[np.float64], num_columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(columns, key of each): the key whose spans [start, stop), in columns, cover most of that column."""
    start, stop = np.clip(start, 0, num_columns), np.clip(stop, 0, num_columns)
    some = stop > start
    keys, start, stop = keys[some], start[some], stop[some]
    first, last = np.floor(start).astype(np.int64), np.ceil(stop).astype(np.int64)  # columns [first, last) are met
    counts = last - first
    span = np.repeat(np.arange(len(keys)), counts)
    column = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[span]
    covered = np.minimum(stop[span], column + 1) - np.maximum(start[span], column)
    order = np.lexsort((keys[span], column))
    column, key, covered = column[order], keys[span][order], covered[order]
    fresh = np.ones(len(column), dtype=bool)
    fresh[1:] = (column[1:] != column[:-1]) | (key[1:] != key[:-1])
    starts = np.flatnonzero(fresh)
    if len(starts) == 0:
        return column, key
    column, key, covered = column[starts], key[starts], np.add.reduceat(covered, starts)
    order = np.lexsort((key, -covered, column))
    column, key = column[order], key[order]
    head = np.ones(len(column), dtype=bool)
    head[1:] = column[1:] != column[:-1]
    return column[head], key[head]


def state_shares(trace: BlockTrace, start_s: float, stop_s: float) -> dict[State, float]:
    """Share of block-time that each state had in what was recorded of [start_s, stop_s); empty where nothing was."""
    seconds = np.minimum(trace.stop_s, stop_s) - np.maximum(trace.start_s, start_s)
    totals = np.bincount(trace.state, weights=np.maximum(seconds, 0), minlength=len(State))
    whole = totals.sum()
    return {} if whole == 0 else {state: float(totals[state] / whole) for state in State}
