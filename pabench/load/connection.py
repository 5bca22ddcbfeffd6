"""One kept HTTP/1.1 connection, which carries one request at a time. HTTP is parsed by httptools (llhttp).

All happens in the callback that reads: a stream reader and a task for each piece would be three times the work.
"""

from __future__ import annotations

import asyncio
import ssl
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools

from pabench.load.line import Address, Line, clock, connect

_MAX_ANSWER_BYTES = 256 << 20   # an engine that never stops must not fill the memory
_MAX_HEADER_BYTES = 1 << 18


class AnswerBroken(ConnectionError):
    """The connection ended before the answer did."""


class NotHTTP(Exception):
    """What came is no answer that HTTP knows."""


@dataclass(slots=True)
class Exchange:
    """One request on the wire, as it was. `times_s[i]` is the arrival of `pieces[i]`, as read.

    All times are of one monotonic clock (`clock`), absolute; back from the journal they count from the run's start.
    `fault`: "connect", "client", "reset", "protocol", "timeout", "planned" or "interrupt"; None when the answer ended
    as HTTP says.
    """

    index: int
    intended_s: float
    asked_s: float | None = None    # when the client turned to it, a connection being yet to open perhaps
    sent_s: float | None = None     # when the request's bytes went out, a connection being there
    status: int | None = None
    times_s: array[float] = field(default_factory=lambda: array("d"))
    pieces: list[bytes] = field(default_factory=list)
    end_s: float | None = None      # when the whole answer was there, as `times_s`; else when it was given up
    fault: str | None = None
    fault_text: str | None = None
    num_events: int = 0             # server-sent events so far: about one a token
    reused: bool = False            # whether it went out over a kept connection
    kept_at: tuple[int, int] | None = None  # journal, and where it holds times and pieces, which are empty here then
    num_pieces: int = 0             # of those

    def fail(self, fault: str, text: str | None = None) -> None:
        """Note what broke it off."""
        self.fault, self.fault_text = fault, text


@dataclass(slots=True)
class Tally:
    """Over all connections."""

    num_events: int = 0     # server-sent
    num_unstamped: int = 0  # reads whose time of arrival the kernel did not tell


class Connection:
    """`ask` again when `usable` and the answer before has ended. `connect` it first."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._line: Line | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._enough: Callable[[Exchange], bool] | None = None
        self._parser: Any = None  # of the answer that is being read: it holds this connection, so it goes with it
        self.idle_since_s = 0.0

    async def connect(self, address: Address, tls: ssl.SSLContext | None, host: str) -> None:
        """Open the line. Raises OSError."""
        self._line = await connect(address, tls, host, self._take, self._lost)

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known."""
        return self._line is not None and self._line.is_open

    def ask(
        self, exchange: Exchange, data: bytes, enough: Callable[[Exchange], bool] | None
    ) -> asyncio.Future[None]:
        """Send `data`; done when the answer has ended, or was cut off as `enough` said. Raises AnswerBroken and NotHTTP
        in there.
        """
        assert self._line is not None, "it is connected"
        self._exchange, self._enough = exchange, enough
        self._done = asyncio.get_running_loop().create_future()
        self._bodies: list[bytes] = []
        self.on_body = self._bodies.append  # the parser calls it: parts of the body
        self._parser = httptools.HttpResponseParser(self)
        self._in_body = self._framed = self._complete = self._goes_on = self._more = False
        self._num_bytes = self._num_bodies = 0
        self._refusal: str | None = None
        self._line.write(data)
        return self._done

    def abort(self) -> None:
        """Cut it, without waiting for anything."""
        self._let_go()
        if self._line is not None:
            self._line.abort()

    def _let_go(self) -> None:
        """Hold nothing of an answer any more. A run collects no garbage: what lies in a ring would stay to its end."""
        self._exchange = self._done = self._parser = None

    def _take(self, data: bytes, time_s: float | None) -> None:
        """Bytes that arrived at `time_s`; None: nobody knows, so now."""
        if time_s is None:
            time_s = clock()
            self._tally.num_unstamped += 1
        exchange = self._exchange
        if exchange is None:  # nobody asked
            self.abort()
            return
        self._num_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._end(NotHTTP(f"expected an HTTP answer, got {data[:80]!r} ({error})"))
                return
            self._more = True
        if self._refusal is not None:
            self._end(NotHTTP(self._refusal))
            return
        if self._more:  # behind the answer: nobody asked for that, so what comes next cannot be told
            del self._bodies[self._num_bodies:]
            self._goes_on = False
        if self._bodies:
            self._keep(exchange, time_s)
        if self._complete:
            exchange.end_s = time_s
            self._end(None)
        elif self._num_bytes > (_MAX_ANSWER_BYTES if self._in_body else _MAX_HEADER_BYTES):
            what, most = ("answer", _MAX_ANSWER_BYTES) if self._in_body else ("header", _MAX_HEADER_BYTES)
            self._end(NotHTTP(f"the {what} is longer than {most} bytes"))

    def _lost(self, error: Exception | None) -> None:
        """An answer without a length ends with its connection; every other one is broken by that."""
        if self._exchange is not None:
            whole = error is None and self._in_body and not self._framed
            where = "inside" if self._num_bytes else "before"
            self._end(None if whole else AnswerBroken(f"the connection ended {where} the answer"))

    # The parser calls these.

    def on_message_begin(self) -> None:
        """Whether it is another one behind the answer."""
        self._more = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Whether the end of the body will be told."""
        name = name.lower()
        self._framed = self._framed or name in (b"content-length", b"transfer-encoding")
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            self._refusal = f"the answer is compressed ({value!r}), though it was asked not to be"

    def on_headers_complete(self) -> None:
        """The body comes now, unless the status is one of those before the real one (1xx)."""
        status = self._parser.get_status_code()
        if status >= 200 and not self._more and self._exchange is not None:
            self._exchange.status, self._in_body = status, True

    def on_message_complete(self) -> None:
        """The answer has ended."""
        if not self._more:
            self._complete, self._num_bodies = self._in_body, len(self._bodies)
            self._goes_on = self._parser.should_keep_alive()  # it forgets with the next step

    def _keep(self, exchange: Exchange, time_s: float) -> None:
        piece = self._bodies[0] if len(self._bodies) == 1 else b"".join(self._bodies)
        self._bodies.clear()
        exchange.times_s.append(time_s)
        exchange.pieces.append(piece)
        count = piece.count(b"data:")
        exchange.num_events += count
        self._tally.num_events += count
        if self._enough is not None and self._enough(exchange):
            exchange.fail("planned")
            self._end(None)
            self.abort()

    def _end(self, error: Exception | None) -> None:
        done = self._done
        self._let_go()
        if self._line is not None and (error is not None or not self._goes_on):
            self._line.abort()
        self.idle_since_s = clock()
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
