"""Reads a block trace: which sequence owns which block, over time. The format is described in docs/measurement.md.

`Replay` follows a trace line by line; `read_block_trace` keeps of it how long each block was in which state.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pabench.errors import UsageError

SCHEMA_VERSION = 1
TRACE_SUFFIX = ".blocks.jsonl"  # of the files in which a report looks for traces
HOLE = -1
MAX_BLOCKS = 1 << 22
_LARGEST = 1 << 53  # of the whole numbers that JSON can be trusted with
_LONGEST_S = 1e9

Line = dict[str, Any]


class State(IntEnum):
    """What a block is at one moment."""

    FREE = 0
    CACHED = 1    # owned by nobody, kept for the prefix cache
    EMPTY = 2     # owned by one sequence, nothing written in it
    PARTIAL = 3   # owned by one sequence, some of its slots written
    FULL = 4      # owned by one sequence, all slots written
    SHARED = 5    # owned by several


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """The first line. `started_at`: when second 0 of the trace was, UTC."""

    started_at: datetime
    block_size: int
    num_blocks: int
    kv: str
    reservation: str | None


@dataclass(slots=True)
class Replay:
    """The engine's tables as of the last line applied.

    `tables`: sequence id -> block ids, HOLE for one given up; `tokens`: sequence id -> tokens written, true to the
    block; `requests`: sequence id -> request id, of all sequences so far.
    """

    header: TraceHeader
    tables: dict[int, list[int]] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    requests: dict[int, int] = field(default_factory=dict)
    cached: set[int] = field(default_factory=set)
    _owners: dict[int, dict[int, int]] = field(default_factory=dict)  # block -> sequence -> its place in the table

    def apply(self, line: Line) -> set[int]:
        """Follow one step. Returns the blocks whose state may have changed. Raises ValueError, KeyError, TypeError."""
        touched: set[int] = set()
        for left in line.get("left", ()):
            seq = _whole(left["seq"])
            self._disown(seq, self.tables.pop(seq), touched)
            del self.tokens[seq]
        for change in line.get("changed", ()):
            self._change(change, touched)
        for name, update in (("uncached", self.cached.discard), ("cached", self.cached.add)):
            for block in line.get(name, ()):
                update(self._block(block))
                touched.add(block)
        return touched

    def _change(self, change: Line, touched: set[int]) -> None:
        seq, tokens = _whole(change["seq"]), _whole(change["tokens"])
        self.requests[seq] = _whole(change["request"])
        table = self.tables.setdefault(seq, [])
        if "blocks" in change:
            holes, keep = _whole(change.get("holes", 0)), _whole(change["keep"])
            if not holes <= keep <= max(holes, len(table)) <= MAX_BLOCKS:
                raise ValueError(f"{keep} entries kept, {holes} of them holes, of a table that has {len(table)}")
            self._disown(seq, table[:holes] + table[keep:], touched)
            table[:] = [HOLE] * holes + table[holes:keep]
            for block in change["blocks"]:
                self._owners.setdefault(self._block(block), {})[seq] = len(table)
                touched.add(block)
                table.append(block)
        size = self.header.block_size
        low, high = sorted((self.tokens.get(seq, 0), tokens))
        touched.update(table[low // size : -(-high // size)])
        touched.discard(HOLE)
        self.tokens[seq] = tokens

    def _disown(self, seq: int, blocks: list[int], touched: set[int]) -> None:
        for block in blocks:
            if block != HOLE:
                del self._owners[block][seq]
                touched.add(block)

    def _block(self, block: object) -> int:
        found = _whole(block)
        if found >= self.header.num_blocks:
            raise ValueError(f"block {found} of {self.header.num_blocks}")
        return found

    def state(self, block: int) -> tuple[State, int]:
        """(state, owning sequence) of a block; of several owners the one that has held it longest, of none -1."""
        owners = self._owners.get(block)
        if not owners:
            return (State.CACHED if block in self.cached else State.FREE), -1
        seq, place = next(iter(owners.items()))
        if len(owners) > 1:
            return State.SHARED, seq
        written = self.tokens[seq] - place * self.header.block_size
        if written <= 0:
            return State.EMPTY, seq
        return (State.FULL if written >= self.header.block_size else State.PARTIAL), seq


@dataclass(frozen=True, slots=True)
class BlockTrace:
    """A trace as spans: block `block[i]` was in `state[i]`, owned by `seq[i]` (-1: nobody), in [start_s[i], end_s[i]).

    Sorted by block, then time; of each block the spans cover all that was recorded, [0, end_s of the trace).
    """

    header: TraceHeader
    end_s: float                      # of the recording, seconds since its start
    end: str                          # "closed" | "limit" | "cut off": the engine was killed, or still runs
    requests: dict[int, int]          # sequence id -> request id
    block: NDArray[np.int32]
    state: NDArray[np.uint8]
    seq: NDArray[np.int64]
    start_s: NDArray[np.float64]
    stop_s: NDArray[np.float64]


def read_header(path: Path) -> TraceHeader:
    """The header alone. Raises UsageError."""
    try:
        with path.open("rb") as file:
            return _header(path, file.readline())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def trace_lines(path: Path) -> Iterator[tuple[int, Line]]:
    """(line number, line) of all whole lines behind the header. Raises UsageError for one that is no JSON object."""
    try:
        with path.open("rb") as file:
            file.readline()
            for at, text in enumerate(file, start=2):
                if not text.endswith(b"\n"):
                    return
                yield at, _object(path, at, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def read_block_trace(path: Path) -> BlockTrace:
    """The trace in `path`, up to its last whole line. Raises UsageError, with the line, where it is none."""
    replay = Replay(read_header(path))
    spans = _Spans(replay.header.num_blocks)
    now, end = 0.0, "cut off"
    for at, line in trace_lines(path):
        try:
            before, now = now, float(line["s"])
            if not before <= now < _LONGEST_S:
                raise ValueError(f"time {now} s behind {before} s")
            if "end" in line:
                end = "limit" if line["end"] == "limit" else "closed"
                break
            for block in replay.apply(line):
                spans.update(block, *replay.state(block), now)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UsageError(f"{path}, line {at}: not a line of a block trace "
                             f"({type(error).__name__}: {str(error)[:120]})") from None
    return spans.trace(replay, now, end)


class _Spans:
    """Columns of spans, in the order in which they end."""

    def __init__(self, num_blocks: int) -> None:
        self._state, self._seq = [0] * num_blocks, [-1] * num_blocks
        self._since = [0.0] * num_blocks
        self._whole_columns = array("q"), array("q"), array("q")  # block, state, seq
        self._times = array("d"), array("d")

    def update(self, block: int, state: State, seq: int, now: float) -> None:
        """From `now` on a block is in `state`."""
        if (state, seq) != (self._state[block], self._seq[block]):
            self._end(block, now)
            self._state[block], self._seq[block], self._since[block] = int(state), seq, now

    def _end(self, block: int, now: float) -> None:
        if now > self._since[block]:
            values = block, self._state[block], self._seq[block]
            for column, value in zip(self._whole_columns, values, strict=True):
                column.append(value)
            self._times[0].append(self._since[block])
            self._times[1].append(now)

    def trace(self, replay: Replay, end_s: float, end: str) -> BlockTrace:
        """All spans, those still open ended at `end_s`."""
        for at in range(len(self._since)):
            self._end(at, end_s)
        block, state, seq = (np.array(column, dtype=np.int64) for column in self._whole_columns)
        start, stop = (np.array(column, dtype=np.float64) for column in self._times)
        order = np.lexsort((start, block))
        return BlockTrace(replay.header, end_s, end, replay.requests, block[order].astype(np.int32),
                          state[order].astype(np.uint8), seq[order], start[order], stop[order])


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"{value!r} where a whole number is expected")
    return value


def _object(path: Path, at: int, text: bytes) -> Line:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}, line {at}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}, line {at}: expected a JSON object")
    return found


def _header(path: Path, text: bytes) -> TraceHeader:
    line = _object(path, 1, text)
    if line.get("block_trace") != SCHEMA_VERSION:
        raise UsageError(f"{path} is no block trace of version {SCHEMA_VERSION}: its first line has "
                         f"\"block_trace\": {str(line.get('block_trace'))[:20]}")
    try:
        started_at = datetime.fromisoformat(line["started_at"])
        block_size, num_blocks = _whole(line["block_size"]), _whole(line["num_blocks"])
        if started_at.tzinfo is None or not 1 <= num_blocks <= MAX_BLOCKS or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} slots from {started_at}")
        reservation = line.get("reservation")
        return TraceHeader(started_at, block_size, num_blocks, str(line["kv"]),
                           None if reservation is None else str(reservation))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}, line 1: not the header of a block trace "
                         f"({type(error).__name__}: {str(error)[:120]})") from None
