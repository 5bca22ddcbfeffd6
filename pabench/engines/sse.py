"""Server-sent events from bytes as they were read. Knows nothing of what the events say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pabench.errors import EngineProtocol

DATA, END = b"data: ", b"\n\n"  # of an event, as most engines write it
_MAX_LINE_BYTES = 64 << 20       # an event with everything that is known of a million tokens is shorter


class Event(NamedTuple):
    """One event. `time_s` is the arrival of the read that completed its last data line."""

    time_s: float
    name: str        # "" where the stream names none
    data: bytes      # data lines joined by a line feed
    complete: bool   # False: the stream ended before the blank line that ends an event


def read_events(chunks: Iterable[tuple[float, bytes]]) -> Iterator[Event]:
    """Events of a stream, from (arrival time in seconds, bytes) as read. Raises EngineProtocol, as `EventReader`."""
    reader = EventReader()
    for time_s, piece in chunks:
        yield from reader.take(time_s, piece)
    yield from reader.rest()


class EventReader:
    """Takes the reads of one stream in turn.

    Understands what engines send: `data:` with or without a space, LF or CRLF, comments, named events, events that
    span or share reads, and a last event without its blank line. One whose data is empty, which keeps a connection
    alive, says nothing and is left out. Raises EngineProtocol for a line that never ends.
    """

    def __init__(self) -> None:
        self._pending: list[bytes] = []  # of a line whose end is yet to come: joined then, and not at every read
        self._num_pending = 0            # bytes
        self._time_s = 0.0               # of the last read
        self._building = _Building()
        self.is_between = True           # whether nothing of an event has been taken that has not ended

    def take(self, time_s: float, piece: bytes) -> Sequence[Event]:
        """The events that `piece` ends."""
        # Most pieces are one event of one line: no need to take them apart.
        if (self.is_between and piece.startswith(DATA) and piece.endswith(END)
                and len(DATA) < piece.find(b"\n") == len(piece) - len(END) <= _MAX_LINE_BYTES):
            return (Event(time_s, "", piece[len(DATA):-len(END)], True),)
        self._time_s = time_s
        head, newline, rest = piece.partition(b"\n")
        if head:
            self._pending.append(head)
            self._num_pending += len(head)
            self.is_between = False
        if not newline:
            _refuse_beyond(self._num_pending)
            return ()
        *lines, pending = (b"".join(self._pending), *rest.split(b"\n"))
        self._pending, self._num_pending = [pending] if pending else [], len(pending)
        _refuse_beyond(max(self._num_pending, *map(len, lines)))
        events = [self._building.take(line.removesuffix(b"\r"), time_s) for line in lines]
        self.is_between = not pending and self._building.is_empty
        return [event for event in events if event is not None]

    def rest(self) -> Sequence[Event]:
        """What the end of the stream left unfinished."""
        if self._pending:
            self._building.take(b"".join(self._pending).removesuffix(b"\r"), self._time_s)
        rest = self._building.rest()
        return () if rest is None else (rest,)


def _refuse_beyond(num_bytes: int) -> None:
    if num_bytes > _MAX_LINE_BYTES:
        raise EngineProtocol(f"a line of the stream is longer than {_MAX_LINE_BYTES} bytes")


class _Building:
    """The event being read."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[bytes] = []
        self._comments: list[bytes] = []
        self._time_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no line of an event has been taken."""
        return not self._data and not self._name

    def take(self, line: bytes, time_s: float) -> Event | None:
        """Add one line; the event that it completes, if it does."""
        if not line:
            if self._name == "error" and not self._data:  # Dynamo tells why in a comment
                self._data = self._comments
            event = self._event(complete=True) if any(self._data) else None
            self._name, self._data, self._comments = "", [], []
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._time_s = time_s
        elif field == b"event":
            self._name = value.decode("utf-8", "replace").strip()
        elif not field and self._name == "error":
            self._comments.append(value)
            self._time_s = time_s
        return None  # `id` and `retry` mean nothing here

    def rest(self) -> Event | None:
        """What the end of the stream left unfinished."""
        return self._event(complete=False) if any(self._data) else None

    def _event(self, complete: bool) -> Event:
        return Event(self._time_s, self._name, b"\n".join(self._data), complete)
