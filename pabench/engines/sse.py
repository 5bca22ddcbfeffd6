"""Server-sent events from bytes as they were read. Knows nothing of what the events say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_DATA = b"data: "


class Event(NamedTuple):
    """One event. `time_s` is the arrival of the read that completed its last data line."""

    time_s: float
    name: str        # "" where the stream names none
    data: bytes      # data lines joined by a line feed
    complete: bool   # False: the stream ended before the blank line that ends an event


def read_events(chunks: Sequence[tuple[float, bytes]]) -> Iterator[Event]:
    """Events of a stream, from (arrival time in seconds, bytes) as read.

    Takes what engines send: `data:` with or without a space, LF or CRLF, comments, named events, events that span or
    share reads, and a last event without its blank line.
    """
    pending = b""
    building = _Building()
    time_s = 0.0
    for time_s, piece in chunks:
        # Most pieces are one event of one line: no need to take them apart.
        if (not pending and building.is_empty and piece.startswith(_DATA) and piece.endswith(b"\n\n")
                and piece.find(b"\n") == len(piece) - 2):
            yield Event(time_s, "", piece[len(_DATA):-2], True)
            continue
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            event = building.take(line.removesuffix(b"\r"), time_s)
            if event is not None:
                yield event
    if pending:
        building.take(pending.removesuffix(b"\r"), time_s)
    rest = building.rest()
    if rest is not None:
        yield rest


class _Building:
    """The event being read."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[bytes] = []
        self._time_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no line of an event has been taken."""
        return not self._data and not self._name

    def take(self, line: bytes, time_s: float) -> Event | None:
        """Add one line; the event that it completes, if it does."""
        if not line:
            event = self._event(complete=True) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._time_s = time_s
        elif field == b"event":
            self._name = value.decode("utf-8", "replace").strip()
        return None  # a comment has an empty field; `id` and `retry` mean nothing here

    def rest(self) -> Event | None:
        """What the end of the stream left unfinished."""
        return self._event(complete=False) if self._data else None

    def _event(self, complete: bool) -> Event:
        return Event(self._time_s, self._name, b"\n".join(self._data), complete)
