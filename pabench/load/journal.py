"""Journals: finished exchanges and telemetry go to disk while the run goes on, so that a kill loses no answer.

Each worker of a run writes one, and the telemetry has its own. A thread writes; the event loop only hands over. One
entry is a JSON line, for an exchange followed by the arrivals, the sizes and the bytes of its pieces as they came:

    {"exchange": {"index": 3, …}, "num_pieces": 20, "num_bytes": 4210}\\n<20 float64><20 uint32><4210 bytes>\\n
    {"sample": {"time_s": 1.25, "kv_usage": 0.5, …}}\\n

Times count from the start of the run. What has been written is given up in memory, so that a run's length costs disk
and not memory: `Journaled` brings it back. A torn last entry, as a kill or a full disk leaves it, is left out there.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import queue
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import orjson

from pabench.engines.cleaning import masked, without_key
from pabench.errors import UsageError
from pabench.load.connection import Exchange
from pabench.load.records import RecordsUnwritable, unwritable
from pabench.telemetry.vocabulary import KVSample

TELEMETRY = "telemetry"
_TIME, _SIZE = np.dtype("<f8"), np.dtype("<u4")
_NO_TIMES = array("d")
_MAPPED_BYTES = 16 << 20  # of journals that stay in this process's memory while they are read


def journal_path(folder: Path, part: str) -> Path:
    """File of one part of a run: a worker's number, or TELEMETRY."""
    return folder / f"journal-{part}.bin"


def journals_in(folder: Path) -> list[Path]:
    """Journals in a run folder: there are some only while it runs, and after a kill."""
    return sorted(folder.glob("journal-*.bin"))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else writes, recovers or resumes the run in `folder` in here, from its start until its books are made.

    Raises UsageError where somebody does. A kill lets go of it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise still_going_on(folder) from None
        yield
    finally:
        os.close(descriptor)


def still_going_on(folder: Path) -> UsageError:
    """The error to raise when somebody else has the run."""
    return UsageError(f"the run in {folder} is still going on: wait for it to end")


class Journal:
    """Writes one journal. `start_s` is the run's zero on `line.clock`. `api_key`: an engine may quote it, and who
    recovers the run after a kill does not know it, so it is left out.

    The file stays locked while the journal is open: a worker may outlive a caller that was killed, which lets go of
    `held`.
    """

    def __init__(self, path: Path, start_s: float, api_key: str | None = None) -> None:
        self.error: RecordsUnwritable | None = None
        self.left: list[Exchange] = []  # what the disk did not take, with times from the run's zero
        self._path, self._start_s, self._api_key = path, start_s, api_key
        self._queue: queue.SimpleQueue[Exchange | KVSample | None] = queue.SimpleQueue()
        try:
            self._file: BinaryIO = path.open("wb", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    def add(self, entry: Exchange | KVSample) -> None:
        """Hand over a finished exchange, or a sample; it is the journal's from then on. Never blocks."""
        self._queue.put(entry)

    def close(self) -> None:
        """Write what is left, and end."""
        self._queue.put(None)
        self._thread.join()
        self._file.close()

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            if self.error is None:
                try:
                    _write(self._file, _encode(entry, self._start_s, self._api_key))
                    continue
                except OSError as error:
                    self.error = unwritable(self._path, error)
                except Exception as error:  # as of memory: a thread that died would lose all that is yet to come
                    self.error = RecordsUnwritable(f"cannot write {self._path}: {type(error).__name__}: {error}")
            if isinstance(entry, Exchange):
                self.left.append(_from_start(entry, self._start_s))


class Journaled:
    """What journals hold, and what they had no room for: exchanges by index, without their pieces, and samples.

    A context manager. Raises UsageError when a journal is still being written, or holds what this version does not
    know.
    """

    def __init__(self, paths: Sequence[Path], left: Iterable[Exchange] = ()) -> None:
        self.exchanges: dict[int, Exchange] = {one.index: one for one in left}
        self.samples: list[KVSample] = []
        self._maps: list[mmap.mmap] = []
        self._num_read = 0  # bytes, since pages were last given back
        for path in paths:
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    raise still_going_on(path.parent) from None
                if path.stat().st_size:
                    self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                    self._list(path, len(self._maps) - 1)

    def __enter__(self) -> Journaled:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for data in self._maps:
            data.close()

    def whole(self, exchange: Exchange) -> Exchange:
        """`exchange` with its times and its pieces."""
        if exchange.kept_at is None:
            return exchange
        number, at = exchange.kept_at
        data, count = self._maps[number], exchange.num_pieces
        sizes_at = at + count * _TIME.itemsize
        times_s = array("d", data[at:sizes_at])
        sizes = np.frombuffer(data[sizes_at:sizes_at + count * _SIZE.itemsize], dtype=_SIZE)
        ends = sizes_at + count * _SIZE.itemsize + np.cumsum(sizes, dtype=np.int64)
        pieces = [data[end - size:end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]
        self._give_back(data, ends[-1].item() - at if count else 0)
        return replace(exchange, times_s=times_s, pieces=pieces, kept_at=None)

    def _list(self, path: Path, number: int) -> None:
        """Take note of all whole entries of a journal. Raises UsageError where one is none that this version knows."""
        data, at = self._maps[number], 0
        no_pieces: list[bytes] = []  # one for all: nobody adds to it
        while (end := data.find(b"\n", at)) >= 0:
            try:
                entry = orjson.loads(data[at:end])
            except orjson.JSONDecodeError:
                return
            at = end + 1
            try:
                if "sample" in entry:
                    self.samples.append(KVSample(**entry["sample"]))
                    continue
                count, num_bytes = entry["num_pieces"], entry["num_bytes"]
                one = Exchange(times_s=_NO_TIMES, pieces=no_pieces, kept_at=(number, at), num_pieces=count,
                               **entry["exchange"])
                end = at + count * (_TIME.itemsize + _SIZE.itemsize) + num_bytes
                if end < at:
                    raise ValueError(f"{count} pieces of {num_bytes} bytes")
                torn = data[end:end + 1] != b"\n"
            except (TypeError, ValueError, KeyError) as error:
                raise UsageError(f"{path} holds an entry that this version does not know ({error}): "
                                 "recover the run with the pabench that its manifest names") from None
            if torn:
                return
            self.exchanges[one.index] = one
            self._give_back(data, end + 1 - at)
            at = end + 1

    def _give_back(self, data: mmap.mmap, num_read: int) -> None:
        """Now and then, the pages that were read: they count as this process's memory as long as they are mapped."""
        self._num_read += num_read
        if self._num_read > _MAPPED_BYTES:
            data.madvise(mmap.MADV_DONTNEED)
            self._num_read = 0


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view):]


def _encode(entry: Exchange | KVSample, start_s: float, api_key: str | None) -> bytes:
    if isinstance(entry, KVSample):
        return orjson.dumps({"sample": asdict(entry) | {"time_s": entry.time_s - start_s}}) + b"\n"
    # All in C: this thread must not keep the event loop's from running.
    times_s = np.asarray(entry.times_s, dtype=_TIME) - start_s
    sizes = np.fromiter(map(len, entry.pieces), dtype=_SIZE, count=len(entry.pieces))
    head = {
        "index": entry.index, "intended_s": entry.intended_s - start_s,
        "asked_s": _since(entry.asked_s, start_s), "sent_s": _since(entry.sent_s, start_s),
        "status": entry.status, "end_s": _since(entry.end_s, start_s), "fault": entry.fault,
        "fault_text": None if entry.fault_text is None else without_key(entry.fault_text, api_key),
        "num_events": entry.num_events, "reused": entry.reused,
    }
    line = orjson.dumps({"exchange": head, "num_pieces": len(sizes), "num_bytes": int(sizes.sum())})
    pieces = entry.pieces if api_key is None else [masked(b"".join(entry.pieces), entry.status, api_key)]
    return b"".join((line, b"\n", times_s.tobytes(), sizes.tobytes(), *pieces, b"\n"))


def _from_start(entry: Exchange, start_s: float) -> Exchange:
    """With times from the run's zero, as those have that come back from a journal."""
    return replace(entry, intended_s=entry.intended_s - start_s, asked_s=_since(entry.asked_s, start_s),
                   sent_s=_since(entry.sent_s, start_s), end_s=_since(entry.end_s, start_s),
                   times_s=array("d", [t - start_s for t in entry.times_s]))


def _since(time_s: float | None, start_s: float) -> float | None:
    return None if time_s is None else time_s - start_s
