"""The hot path: send, and keep what comes with its arrival time. Bytes and times only; parsing is for afterwards."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import SplitResult, quote, urlsplit

import orjson

from pabench.engines.base import Dialect
from pabench.engines.cleaning import clean
from pabench.engines.keys import authorization
from pabench.engines.wording import worded
from pabench.errors import UsageError
from pabench.load.connection import AnswerBroken, Connection, Exchange, NotHTTP, Tally
from pabench.load.cutting import TokenLimit
from pabench.load.line import Address, clock
from pabench.load.schedule import ScheduledRequest

_KEEPALIVE_S = 2.0              # below what servers wait (5 s and more): none closes one as it is reused
_STALE_S = 0.05                 # a connection that was closed before the request came breaks within this
_OUR_FAULTS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with its bytes ready. `enough`: asked at each read whether to cut it off; None: never."""

    index: int
    path: str
    body: bytes
    headers: Mapping[str, str]
    enough: Callable[[Exchange], bool] | None = None


def prepare(scheduled: ScheduledRequest, dialect: Dialect, model: str) -> PreparedRequest:
    """Build path, body and headers. Raises UsageError for what the dialect cannot say."""
    path, body = dialect.build(worded(scheduled.request, dialect), model)
    headers = {"X-Request-Id": scheduled.request.request_id} if scheduled.request.request_id else {}
    limit = scheduled.cancel_after_tokens
    return PreparedRequest(scheduled.index, path, orjson.dumps(body), headers,
                           None if limit is None else TokenLimit(limit, dialect))


class LoadClient:
    """Sends prepared requests to one engine over kept connections. An async context manager.

    Nothing queues in here: there is no limit of connections, so a request leaves when it is sent.
    Raises UsageError for a key or a host that no header can hold.
    """

    def __init__(self, url: str, *, timeout_s: float, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._path = quote(parts.path, safe="/%~!$&'()*+,;=:@")
        self._timeout_s = timeout_s
        self._head = _head(_host_field(parts), api_key)
        self._addresses: list[Address] = []
        self._idle: list[Connection] = []
        self._tally = Tally()
        self.in_flight = 0
        self.num_sent_again = 0   # over a fresh connection, the kept one being closed

    @property
    def kernel_stamps(self) -> bool:
        """Whether all arrivals since the last `reset` are the kernel's."""
        return self._tally.num_unstamped == 0

    @property
    def num_events(self) -> int:
        """Server-sent events over all requests since the last `reset`."""
        return self._tally.num_events

    def reset(self) -> None:
        """Count from here."""
        self._tally.num_events = self._tally.num_unstamped = 0

    async def resolve(self) -> None:
        """Find the host's addresses, if they are not known: the first request would wait for that. Raises OSError."""
        if not self._addresses:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = [(family, where) for family, *_, where in found]

    async def __aenter__(self) -> LoadClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is kept open."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def send(self, request: PreparedRequest, intended_s: float) -> Exchange:
        """Send and read to the end. What goes wrong is noted in the exchange; only cancellation is raised on."""
        exchange = Exchange(request.index, intended_s)
        await self.carry(request, exchange)
        return exchange

    async def carry(self, request: PreparedRequest, exchange: Exchange) -> None:
        """`send` into an exchange of the caller's, who keeps it when this is cancelled."""
        self.in_flight += 1
        exchange.asked_s = clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._read_once(request, exchange)
        except TimeoutError:
            exchange.fail("timeout", f"no complete answer within {self._timeout_s:g} s")
        except asyncio.CancelledError:
            exchange.fail("interrupt")
            raise
        except _NoConnection as error:
            exchange.fail("client" if error.number in _OUR_FAULTS else "connect", clean(str(error)))
        except ConnectionError as error:
            exchange.fail("reset", clean(str(error)))
        except NotHTTP as error:
            exchange.fail("protocol", clean(str(error)))
        finally:
            if exchange.end_s is None or exchange.fault is not None:
                exchange.end_s = clock()  # nobody else knows when: a client gives up when it does
            elif exchange.sent_s is not None:  # a stamp is older where the wall clock was set forward meanwhile
                exchange.end_s = max(exchange.end_s, exchange.sent_s)
            self.in_flight -= 1

    async def _read_once(self, request: PreparedRequest, exchange: Exchange) -> None:
        """Read the answer; send once more when a kept connection proves closed at once.

        A server may close an idle connection just as it is taken: it has not read the request then. One that breaks
        later may have been read, so that is the engine's fault, and is kept.
        """
        kept = self._kept()
        if kept is not None:
            exchange.reused = True
            try:
                await self._read(kept, request, exchange)
                return
            except AnswerBroken:
                sent_s = exchange.sent_s
                if exchange.status is not None or sent_s is None or clock() - sent_s > _STALE_S:
                    raise
                self.num_sent_again += 1
        await self._read(await self._connect(), request, exchange)

    async def _read(self, connection: Connection, request: PreparedRequest, exchange: Exchange) -> None:
        named = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        head = f"POST {self._path}{request.path} HTTP/1.1\r\n{named}Content-Length: {len(request.body)}\r\n{self._head}"
        if exchange.sent_s is None:
            exchange.sent_s = clock()
        try:
            await connection.ask(exchange, head.encode() + request.body, request.enough)
        except BaseException:
            connection.abort()
            raise
        if connection.usable:
            self._idle.append(connection)

    def _kept(self) -> Connection | None:
        """An open connection that was used just now: the last one, so that the others may age."""
        oldest_s = clock() - _KEEPALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since_s >= oldest_s:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        """A fresh connection, to the first of the host's addresses that takes one. Raises _NoConnection."""
        try:
            await self.resolve()
            for address in tuple(self._addresses):
                connection = Connection(self._tally)
                try:
                    await connection.connect(address, self._tls, self._host)
                except OSError as error:
                    failure = error
                    continue
                self._addresses = [address]  # what becomes of the engine there, no other address can tell
                return connection
        except OSError as error:
            failure = error
        try:
            raise _NoConnection(self._host, self._port, failure)
        finally:
            del failure  # it holds this frame, which holds it: a ring, and a run collects no garbage


class _NoConnection(Exception):
    """The engine could not be connected to."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        super().__init__(f"no connection to {host}:{port}: {error.strerror or error}")
        self.number = error.errno


def _host_field(parts: SplitResult) -> str:
    """Host and port as a header says them."""
    if parts.netloc.isascii():
        return parts.netloc
    try:
        host = (parts.hostname or "").encode("idna").decode()
    except UnicodeError as error:
        raise UsageError(f"the URL's host is {parts.hostname!r}, which is no name of a host: {error}") from None
    return host if parts.port is None else f"{host}:{parts.port}"


def _head(host: str, api_key: str | None) -> str:
    """The headers that all requests have in common, and the blank line after them."""
    fields = {"Host": host, "Content-Type": "application/json", "Accept": "*/*", "Accept-Encoding": "identity",
              "User-Agent": "pabench"}
    fields |= authorization(api_key)
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
