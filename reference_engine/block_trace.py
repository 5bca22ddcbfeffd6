"""Which sequence owns which block at each step, recorded as a file of JSON lines.

The format is described in docs/measurement.md; `pabench report` draws it as the block map. One line a step, of what
has changed since the line before: the file is small, and stays readable when the engine is killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from pabench.errors import UsageError
from reference_engine.memory.allocator import HOLE, blocks_for
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence, Status

SCHEMA_VERSION = 1
MAX_BYTES = 64 << 20
FLUSH_INTERVAL_S = 0.5


def check_new_file(path: Path) -> None:
    """Raise UsageError unless a trace may be written to `path`. Call it before the model is loaded."""
    if path.exists():
        raise UsageError(f"the trace {path} exists already, expected a new file: name another, or remove it")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the trace {path} cannot be written: {path.parent} is no folder; make it first")


@dataclass(slots=True)
class _Known:
    """A sequence as the file has it."""

    seq: Sequence
    table: list[int]
    num_started: int  # blocks in which something is written


class BlockTrace:
    """Writes the trace of one engine. All methods belong to the thread that steps it, `close` to who has ended that.

    A line is due when a block table changes or a sequence begins another block. Recording ends, and says so in the
    file and on stderr, once the file has `max_bytes`, or when it cannot be written; the engine goes on.
    """

    def __init__(self, path: Path, scheduler: Scheduler, *, max_bytes: int = MAX_BYTES) -> None:
        self._scheduler, self._path, self._max_bytes = scheduler, path, max_bytes
        self._known: dict[int, _Known] = {}
        self._idle: Set[int] = frozenset()
        self._num_steps = self._num_bytes = 0
        self._lines: list[bytes] = []
        check_new_file(path)
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise UsageError(f"the trace {path} cannot be written: {error.strerror}") from None
        self._start_s = self._flushed_s = time.monotonic()
        self._add(self._header())
        self._flush()

    def _header(self) -> dict[str, Any]:
        config = self._scheduler.config
        return {
            "block_trace": SCHEMA_VERSION, "started_at": datetime.now(UTC).isoformat(),
            "block_size": config.block_size, "num_blocks": config.num_blocks, "kv": config.kv,
            "reservation": config.reservation if config.kv == "contiguous" else None,
            "prefix_caching": config.caches_prefixes, "preemption": config.preemption, "max_bytes": self._max_bytes,
        }

    def end_step(self) -> None:
        """Write what a step has changed."""
        self._num_steps += 1
        self.look()

    def look(self) -> None:
        """Write what has changed since the last look, between two steps."""
        if self._file.closed:
            return
        changed = [change for seq in self._scheduler.running if (change := self._change(seq)) is not None]
        left = self._left() if len(self._known) > len(self._scheduler.running) else []
        line: dict[str, Any] = {"changed": changed, "left": left}
        idle = self._scheduler.allocator.idle_blocks
        if changed or left or len(idle) != len(self._idle):
            line |= {"cached": sorted(idle - self._idle), "uncached": sorted(self._idle - idle)}
            self._idle = set(idle)
        told = {key: found for key, found in line.items() if found}
        now = time.monotonic()
        if told:
            self._add(self._when(now) | told)
        if self._num_bytes > self._max_bytes:
            self._end("limit", f"it has reached its limit of {self._max_bytes / 2**20:.3g} MiB")
        elif now - self._flushed_s > FLUSH_INTERVAL_S or not self._scheduler.running:
            self._flushed_s = now
            self._flush()

    def _change(self, seq: Sequence) -> dict[str, Any] | None:
        """What is new about a running sequence; None: nothing."""
        allocator = self._scheduler.allocator
        table, num_started = allocator.block_table(seq.id), blocks_for(seq.num_computed, allocator.block_size)
        known = self._known.get(seq.id)
        if known is not None and known.num_started == num_started and known.table == table:
            return None
        change = {"seq": seq.id, "request": seq.request.id, "tokens": seq.num_computed}
        if known is None or known.table != table:
            change |= _table_change([] if known is None else known.table, table)
        self._known[seq.id] = _Known(seq, list(table), num_started)
        return change

    def _left(self) -> list[dict[str, Any]]:
        """Sequences that hold no blocks any more, and why."""
        gone = [known.seq for known in self._known.values() if known.seq.status is not Status.RUNNING]
        for seq in gone:
            del self._known[seq.id]
        return [{"seq": seq.id, "why": _why(seq)} for seq in gone]

    def _when(self, now: float) -> dict[str, Any]:
        return {"step": self._num_steps, "s": round(now - self._start_s, 6)}

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._num_bytes += len(self._lines[-1])

    def _flush(self) -> None:
        data = memoryview(b"".join(self._lines))
        self._lines.clear()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.close()
            self._say(f"it cannot be written: {error.strerror}")

    def _end(self, end: str, reason: str) -> None:
        self._add({"end": end} | self._when(time.monotonic()))
        self._flush()
        if not self._file.closed:
            self._file.close()
            if reason:
                self._say(reason)

    def _say(self, reason: str) -> None:
        print(f"the trace {self._path} ends at step {self._num_steps}: {reason}; the engine goes on",
              file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write what is left and the end, once the engine has stopped. A second call does nothing."""
        if not self._file.closed:
            self._end("closed", "")


def _table_change(old: list[int], new: Iterable[int]) -> dict[str, Any]:
    """How a table changes: its first `holes` entries are given up, of the rest `keep` entries stay, `blocks` follow."""
    table = list(new)
    holes = next((at for at, block in enumerate(table) if block != HOLE), len(table))
    keep = holes
    while keep < min(len(old), len(table)) and old[keep] == table[keep]:
        keep += 1
    change: dict[str, Any] = {"keep": keep, "blocks": table[keep:]}
    return change | {"holes": holes} if holes else change


def _why(seq: Sequence) -> str:
    if seq.status is Status.FINISHED:
        return "ended"
    return "swapped" if seq.is_swapped else "preempted"
