"""The hot path: send, and keep what comes with its arrival time. Bytes and timestamps only; parsing is for afterwards.

All times are of one monotonic clock (`clock`), absolute; `settle.py` moves them to the start of the run.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType

import aiohttp
import orjson

from pabench.engines.base import Dialect
from pabench.engines.cleaning import clean
from pabench.engines.wording import worded
from pabench.load.schedule import ScheduledRequest

clock = time.monotonic

_READ_BUFFER_BYTES = 1 << 20    # aiohttp's 64 KiB would throttle long streams
_MAX_ANSWER_BYTES = 256 << 20   # an engine that never stops must not fill the memory
_KEEPALIVE_S = 2.0              # below what servers wait (5 s and more): none closes one as it is reused
_STALE_S = 0.05                 # a connection that was closed before the request came breaks within this
_OUR_FAULTS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
_BROKEN = (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with its bytes ready. `cancel_after_tokens`: cut it off then; None: never."""

    index: int
    path: str
    body: bytes
    headers: Mapping[str, str]
    cancel_after_tokens: int | None = None


@dataclass(slots=True)
class Exchange:
    """One request on the wire, as it was. `times_s[i]` is the arrival of `pieces[i]`.

    `fault`: "connect", "client", "reset", "protocol", "timeout", "planned" or "interrupt"; None when the answer ended
    as HTTP says.
    """

    index: int
    intended_s: float
    sent_s: float | None = None     # when the request's bytes went out, a connection being there
    status: int | None = None
    times_s: list[float] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    end_s: float | None = None
    fault: str | None = None
    fault_text: str | None = None
    num_events: int = 0             # server-sent events so far: about one a token
    reused: bool = False            # whether it went out over a kept connection

    def fail(self, fault: str, text: str | None = None) -> None:
        """Note what broke it off."""
        self.fault, self.fault_text = fault, text


def prepare(scheduled: ScheduledRequest, dialect: Dialect, model: str) -> PreparedRequest:
    """Build path, body and headers. Raises UsageError for what the dialect cannot say."""
    path, body = dialect.build(worded(scheduled.request, dialect), model)
    headers = {"X-Request-Id": scheduled.request.request_id} if scheduled.request.request_id else {}
    return PreparedRequest(scheduled.index, path, orjson.dumps(body), headers, scheduled.cancel_after_tokens)


class LoadClient:
    """Sends prepared requests to one engine over kept connections. An async context manager.

    Nothing queues in here: there is no limit of connections, so a request leaves when it is sent.
    """

    def __init__(self, url: str, *, timeout_s: float, api_key: str | None = None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self.in_flight = 0
        self.num_events = 0   # over all requests so far
        self.num_sent_again = 0   # over a fresh connection, the kept one being closed

    async def __aenter__(self) -> LoadClient:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sent)
        trace.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            read_bufsize=_READ_BUFFER_BYTES, cookie_jar=aiohttp.DummyCookieJar(), trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: PreparedRequest, intended_s: float) -> Exchange:
        """Send and read to the end. What goes wrong is noted in the exchange; only cancellation is raised on."""
        exchange = Exchange(request.index, intended_s)
        await self.carry(request, exchange)
        return exchange

    async def carry(self, request: PreparedRequest, exchange: Exchange) -> None:
        """`send` into an exchange of the caller's, who keeps it when this is cancelled."""
        self.in_flight += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._read_once(request, exchange)
        except TimeoutError:
            exchange.fail("timeout", f"no complete answer within {self._timeout_s:g} s")
        except asyncio.CancelledError:
            exchange.fail("interrupt")
            raise
        except aiohttp.ClientConnectorError as error:
            exchange.fail("client" if error.os_error.errno in _OUR_FAULTS else "connect", clean(str(error)))
        except _BROKEN as error:
            exchange.fail("reset", clean(str(error) or type(error).__name__))
        except OSError as error:
            exchange.fail("client", clean(str(error)))
        except aiohttp.ClientError as error:
            exchange.fail("protocol", clean(str(error) or type(error).__name__))
        finally:
            exchange.end_s = clock()
            self.in_flight -= 1

    async def _read_once(self, request: PreparedRequest, exchange: Exchange) -> None:
        """Read the answer; send once more when a kept connection proves closed at once.

        A server may close an idle connection just as it is taken: it has not read the request then. One that breaks
        later may have been read, so that is the engine's fault, and is kept.
        """
        try:
            await self._read(request, exchange)
        except _BROKEN:
            sent_s = exchange.sent_s
            stale = exchange.reused and exchange.status is None
            if not stale or sent_s is None or clock() - sent_s > _STALE_S:
                raise
            self.num_sent_again += 1
            await self._read(request, exchange)

    async def _read(self, request: PreparedRequest, exchange: Exchange) -> None:
        if self._session is None:
            raise RuntimeError("LoadClient is used inside `async with`")
        limit = request.cancel_after_tokens
        num_bytes = 0
        async with self._session.post(
            self._url + request.path, data=request.body, headers=request.headers, allow_redirects=False,
            trace_request_ctx=exchange,
        ) as response:
            exchange.status = response.status
            async for piece in response.content.iter_any():
                exchange.times_s.append(clock())
                exchange.pieces.append(piece)
                num_bytes += len(piece)
                count = piece.count(b"data:")
                exchange.num_events += count
                self.num_events += count
                if limit is not None and exchange.num_events >= limit:
                    exchange.fail("planned")
                    response.close()
                    return
                if num_bytes > _MAX_ANSWER_BYTES:
                    exchange.fail("protocol", f"the answer is longer than {_MAX_ANSWER_BYTES} bytes")
                    response.close()
                    return


async def _note_sent(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestHeadersSentParams
) -> None:
    """The connection is there and the bytes go out in this very step of the loop."""
    exchange = context.trace_request_ctx
    if isinstance(exchange, Exchange) and exchange.sent_s is None:
        exchange.sent_s = clock()


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    exchange = context.trace_request_ctx
    if isinstance(exchange, Exchange):
        exchange.reused = True
