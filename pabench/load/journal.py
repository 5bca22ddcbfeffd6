"""The journal: finished exchanges and telemetry go to disk while the run goes on, so that a kill loses no answer.

A thread of its own writes; the event loop only hands over. One entry is a JSON line, for an exchange followed by the
arrivals, the sizes and the bytes of its pieces as they came:

    {"exchange": {"index": 3, …, "num_pieces": 20}}\\n<20 float64><20 uint32><bytes>\\n
    {"sample": {"time_s": 1.25, "kv_usage": 0.5, …}}\\n

What has been written is given up in memory, so that a run's length costs disk and not memory: `JournalReader` brings
it back. A torn last entry, as a kill or a full disk leaves it, is left out by the reader.
"""

from __future__ import annotations

import fcntl
import queue
import threading
from array import array
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from pabench.errors import UsageError
from pabench.load.connection import Exchange
from pabench.load.records import RecordsUnwritable, unwritable
from pabench.telemetry.vocabulary import KVSample

JOURNAL_FILE = "journal.bin"
_NO_TIMES = array("d")


class Journal:
    """Writes one run's journal. Entries hold times from `start_s`, the run's zero: set it before the first one.

    The file stays locked while the journal is open, so that nobody recovers a run that is still going on.
    """

    def __init__(self, folder: Path) -> None:
        self.start_s = 0.0
        self.error: RecordsUnwritable | None = None
        self._path = folder / JOURNAL_FILE
        self._queue: queue.SimpleQueue[Exchange | KVSample | None] = queue.SimpleQueue()
        try:
            self._file: BinaryIO = self._path.open("wb", buffering=0)
        except OSError as error:
            raise unwritable(self._path, error) from error
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    def add(self, entry: Exchange | KVSample) -> None:
        """Hand over a finished exchange, or a sample. Never blocks."""
        self._queue.put(entry)

    def close(self) -> None:
        """Write what is left, and end."""
        self._queue.put(None)
        self._thread.join()
        self._file.close()

    def remove(self) -> None:
        """Delete the file: all it holds is in the tables now."""
        self._path.unlink(missing_ok=True)

    def _write_all(self) -> None:
        end = 0
        while (entry := self._queue.get()) is not None:
            if self.error is not None:
                continue
            head, rest = _encode(entry, self.start_s)
            try:
                _write(self._file, head + rest)
            except OSError as error:
                self.error = unwritable(self._path, error)
                continue
            if isinstance(entry, Exchange):
                entry.kept_at, entry.num_pieces = end + len(head), len(entry.pieces)
                entry.times_s, entry.pieces = _NO_TIMES, []
            end += len(head) + len(rest)


class JournalReader:
    """Brings back what a journal has taken over. A context manager; open it after the journal is closed."""

    def __init__(self, folder: Path, start_s: float) -> None:
        self._path, self._start_s = folder / JOURNAL_FILE, start_s

    def __enter__(self) -> JournalReader:
        self._file = self._path.open("rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def whole(self, exchange: Exchange) -> Exchange:
        """`exchange` with its times, absolute, and its pieces."""
        if exchange.kept_at is None:
            return exchange
        self._file.seek(exchange.kept_at)
        found = _read_pieces(self._file, exchange.num_pieces)
        assert found is not None, "it was written whole"
        times_s, pieces = found
        return replace(exchange, times_s=array("d", times_s + self._start_s), pieces=pieces, kept_at=None)


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view):]


def _encode(entry: Exchange | KVSample, start_s: float) -> tuple[bytes, bytes]:
    """The line, and what follows it."""
    if isinstance(entry, KVSample):
        return orjson.dumps({"sample": asdict(entry) | {"time_s": entry.time_s - start_s}}) + b"\n", b""
    head = {
        "index": entry.index, "intended_s": entry.intended_s - start_s, "sent_s": _since(entry.sent_s, start_s),
        "status": entry.status, "end_s": _since(entry.end_s, start_s), "fault": entry.fault,
        "fault_text": entry.fault_text, "num_events": entry.num_events,
        "num_pieces": len(entry.pieces),
    }
    # All in C: this thread must not keep the event loop's from running.
    times_s = np.asarray(entry.times_s, dtype="<f8") - start_s
    sizes = np.fromiter(map(len, entry.pieces), dtype="<u4", count=len(entry.pieces))
    return (orjson.dumps({"exchange": head}) + b"\n",
            b"".join((times_s.tobytes(), sizes.tobytes(), *entry.pieces, b"\n")))


def _since(time_s: float | None, start_s: float) -> float | None:
    return None if time_s is None else time_s - start_s


def read_journal(folder: Path) -> tuple[list[Exchange], list[KVSample]]:
    """Whole entries of a run's journal, times from the start of the run. Raises UsageError when it is in use."""
    path = folder / JOURNAL_FILE
    if not path.is_file():
        raise UsageError(f"{folder} holds no journal: nothing was measured, or it was moved")
    exchanges: list[Exchange] = []
    samples: list[KVSample] = []
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"the run in {folder} is still going on: wait for it to end") from None
        for entry in _entries(file):
            if isinstance(entry, KVSample):
                samples.append(entry)
            else:
                exchanges.append(entry)
    return exchanges, samples


def _entries(file: BinaryIO) -> Iterator[Exchange | KVSample]:
    while (line := file.readline()).endswith(b"\n"):
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            return
        if "sample" in entry:
            yield KVSample(**entry["sample"])
            continue
        head = entry["exchange"]
        found = _read_pieces(file, head.pop("num_pieces"))
        if found is None:
            return
        yield Exchange(times_s=array("d", found[0]), pieces=found[1], **head)


def _read_pieces(file: BinaryIO, count: int) -> tuple[NDArray[np.float64], list[bytes]] | None:
    """Arrival times, `[count]` float64 seconds, and pieces; None where they are torn."""
    times, sizes = file.read(8 * count), file.read(4 * count)
    if len(sizes) < 4 * count:
        return None
    pieces = [file.read(size) for size in np.frombuffer(sizes, dtype="<u4").tolist()]
    return (np.frombuffer(times, dtype="<f8"), pieces) if file.read(1) == b"\n" else None
