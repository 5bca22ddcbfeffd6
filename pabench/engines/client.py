"""A client for conformance and doctor: few requests, each bounded in time, each failure named.

The load client (`pabench.load`) is another one: it keeps bytes while it measures. Both build and parse by dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from pabench.engines.address import base_url
from pabench.engines.base import Completion, Dialect, GenerationRequest, TextReader
from pabench.engines.cleaning import clean, without_key
from pabench.engines.exchange import Exchange, reason, refuse_redirect
from pabench.engines.keys import authorization
from pabench.engines.wording import worded
from pabench.errors import EngineDied, EngineProtocol, EngineTimeout, EngineUnreachable, PabenchError, UsageError
from pabench.probe import Codec
from pabench.telemetry.exposition import ACCEPT
from pabench.telemetry.pages import PageReader
from pabench.telemetry.scrape import metrics_url
from pabench.telemetry.vocabulary import KVSample, MetricFamilies

_HEALTH_TIMEOUT_S = 5.0
_MAX_BYTES = 64 << 20     # of an answer: one without end must not fill the memory
_GONE_ATTEMPTS = 3
_GONE_PAUSE_S = 0.1
NO_ROUTE = (400, 404)  # the former from older Tritons
MODELS_PATH = "/v1/models"
ABORT_DELAY_S = 0.05  # long enough for a request's bytes to be read by an engine on this host
# A connection that broke, before or inside the answer.
_BROKEN = (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)


class EngineClient:
    """Talks to one engine. An async context manager; a call ends within `timeout_s` seconds or raises EngineTimeout.

    `read_text` reads ids from answers in text; the probe's Codec is taken where ids had to be sent as words.
    `api_key` goes into the Authorization header and nowhere else; an engine's error that quotes it is read without it.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        model: str,
        *,
        timeout_s: float = 60.0,
        read_text: TextReader | None = None,
        api_key: str | None = None,
    ) -> None:
        self.url = base_url(url)
        self.dialect = dialect
        self.model = model
        self._timeout_s = timeout_s
        self._read_text = read_text
        self._api_key = api_key
        self._headers = authorization(api_key)
        self._session: aiohttp.ClientSession | None = None
        self._answered = False

    async def __aenter__(self) -> EngineClient:
        # A connection a request: a kept one may be closed by the engine just as it is used again.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._headers, timeout=aiohttp.ClientTimeout(total=None)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def generate(self, request: GenerationRequest) -> Completion:
        """The answer to `request`. What the engine refuses comes back as `Completion.error`, not as an exception."""
        return await self._generate(request, None)

    def written(self, request: GenerationRequest) -> tuple[str, str]:
        """Path and body of `request`, as it would be sent."""
        path, body = self.dialect.build(worded(request, self.dialect), self.model)
        return path, orjson.dumps(body).decode()

    async def start_then_abort(
        self, request: GenerationRequest, after_tokens: int, delay_s: float = ABORT_DELAY_S
    ) -> Completion:
        """Stream `request` and disconnect once `after_tokens` tokens have come; the answer so far.

        With 0 the connection is cut `delay_s` seconds after the request is sent, whatever has come until then.
        """
        if not request.stream:
            raise UsageError("only a stream can be aborted in the middle: ask with stream=True")
        if after_tokens > 0:
            return await self._generate(request, after_tokens)
        sending = asyncio.create_task(self._generate(request, None))
        await asyncio.wait({sending}, timeout=delay_s)
        sending.cancel()
        await asyncio.wait({sending})
        return Completion(truncated=True) if sending.cancelled() else sending.result()

    async def metrics(self) -> MetricFamilies | None:
        """All samples of the metrics page, and of those beside it; None where the engine has none."""
        return await PageReader(self.dialect, self.page).read()

    async def kv_sample(self) -> KVSample | None:
        """The KV vocabulary of now; None where the engine has no metrics."""
        metrics = await self.metrics()
        return None if metrics is None else self.dialect.kv_sample(metrics, time.monotonic())

    async def healthy(self) -> bool:
        """Whether the engine says that it can serve. Those without the route are asked for their models."""
        for path in (self.dialect.health_path, MODELS_PATH):
            try:
                async with asyncio.timeout(min(self._timeout_s, _HEALTH_TIMEOUT_S)):
                    exchange = await self._exchange("GET", path, None, {})
            except (EngineUnreachable, EngineDied, EngineTimeout, EngineProtocol, TimeoutError):
                return False
            if exchange.status not in NO_ROUTE:
                return exchange.status == 200 and not exchange.broken
        return False

    async def page(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page of metrics."""
        status, _, body = await self.get(path, {"Accept": ACCEPT})
        return status, body

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of a GET."""
        exchange = await self._exchange("GET", path, None, headers or {})
        return exchange.status, exchange.headers, exchange.body

    async def post_raw(
        self, path: str, body: bytes | Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of a POST of exactly these bytes, for tests of bad input."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        exchange = await self._exchange("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        return exchange.status, exchange.body

    async def _generate(self, request: GenerationRequest, stop_after: int | None) -> Completion:
        path, body = self.dialect.build(worded(request, self.dialect), self.model)
        read_text = self._read_text
        if read_text is None and not isinstance(request.prompt, str) and not isinstance(body.get("prompt"), list):
            read_text = Codec.decode

        def enough(exchange: Exchange) -> bool:
            answer = self._parsed(request, exchange, read_text)
            return sum(len(choice.token_times_s) for choice in answer.choices) >= (stop_after or 0)

        headers = {"Content-Type": "application/json"}
        if request.request_id is not None:
            headers["X-Request-Id"] = request.request_id
        exchange = await self._exchange(
            "POST", path, orjson.dumps(body), headers, enough=None if stop_after is None else enough
        )
        if exchange.broken and not request.stream:
            return Completion(status=exchange.status, error="the connection broke inside the answer", truncated=True)
        with self._without_key():
            answer = self._parsed(request, exchange, read_text)
        if answer.error is not None:  # JSON can spell a key in ways that its bytes do not show
            answer.error = without_key(answer.error, self._api_key)
        return replace(answer, truncated=True) if exchange.broken else answer

    def _parsed(self, request: GenerationRequest, exchange: Exchange, read_text: TextReader | None) -> Completion:
        try:
            if request.stream:
                return self.dialect.parse_stream(exchange.status, exchange.chunks, read_text)
            return self.dialect.parse(exchange.status, exchange.body, read_text)
        except PabenchError:
            raise
        except Exception as error:  # an engine can send anything at all, and no list of errors is complete
            raise EngineProtocol(f"the answer is of no form that dialect {self.dialect.name!r} has "
                                 f"({type(error).__name__}: {clean(str(error))})") from error

    async def _exchange(
        self,
        method: str,
        path: str,
        data: bytes | None,
        headers: Mapping[str, str],
        *,
        enough: Callable[[Exchange], bool] | None = None,
    ) -> Exchange:
        """Send, and read until the answer ends, breaks or is `enough`."""
        if self._session is None:
            raise RuntimeError("EngineClient is used inside `async with`")
        exchange, num_bytes = Exchange(), 0
        follows = method == "GET"  # to /metrics/ perhaps; the load client's POST follows none either
        with self._without_key():
            async with (
                self._named_faults(f"{method} {path}", exchange, elsewhere=path.startswith(":")),
                self._session.request(method, metrics_url(self.url, path), data=data, headers=headers,
                                      allow_redirects=follows) as response,
            ):
                self._answered = True
                exchange.status = response.status
                exchange.headers = dict(response.headers)
                async for piece in response.content.iter_any():
                    exchange.chunks.append((time.monotonic(), piece))
                    num_bytes += len(piece)
                    if num_bytes > _MAX_BYTES:
                        raise EngineProtocol(f"{method} {path} at {self.url}: the answer is longer than "
                                             f"{_MAX_BYTES >> 20} MiB, and was not read to its end")
                    if enough is not None and enough(exchange):
                        response.close()
                        break
            refuse_redirect(f"{method} {path} at {self.url}", exchange)
        exchange.leave_out(self._api_key)
        return exchange

    @contextlib.asynccontextmanager
    async def _named_faults(self, what: str, exchange: Exchange, *, elsewhere: bool) -> AsyncIterator[None]:
        """Turn what goes wrong on the wire into the exception tree of pabench. `elsewhere`: on another port."""
        where = f"{what} at {self.url}"
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            got = f"{len(exchange.body)} bytes" if exchange.status else "nothing"
            raise EngineTimeout(f"{where}: no complete answer within {self._timeout_s:g} s, got {got}") from error
        except aiohttp.ClientConnectorError as error:
            if elsewhere:
                raise EngineProtocol(f"{where}: nothing answers there ({reason(error)})") from error
            raise self._gone(error) from error
        except _BROKEN as error:
            await self._raise_if_gone()
            if not exchange.status:
                raise EngineProtocol(f"{where}: the engine closed the connection without an answer") from error
            exchange.broken = True
        except aiohttp.RedirectClientError as error:
            raise EngineProtocol(f"{where}: it redirects to what is no web address") from error
        except aiohttp.InvalidURL as error:
            raise UsageError(f"not an engine's URL: {clean(str(error))}") from error
        except aiohttp.ClientError as error:
            told = clean(without_key(str(error), self._api_key))  # which a cut could end inside
            raise EngineProtocol(f"{where}: expected an HTTP answer, got {told}") from error

    @contextlib.contextmanager
    def _without_key(self) -> Iterator[None]:
        """What goes wrong inside is told without the key, which an engine may quote."""
        try:
            yield
        except PabenchError as error:
            text = without_key(str(error), self._api_key)
            if text == str(error):
                raise
            raise type(error)(text) from None

    def _gone(self, error: Exception) -> EngineDied | EngineUnreachable:
        if self._answered:
            return EngineDied(f"the engine at {self.url} answered before and does not any more: {reason(error)}")
        if isinstance(error, aiohttp.ClientSSLError):
            return EngineUnreachable(f"no TLS connection to {self.url} ({reason(error)}): does it serve https, with a "
                                     "certificate that is trusted here?")
        return EngineUnreachable(
            f"nothing answers at {self.url} ({reason(error)}): is the engine running, and is the URL right?"
        )

    async def _raise_if_gone(self) -> None:
        """Raise EngineDied or EngineUnreachable when the engine takes no connection any more.

        Asked more than once: an engine that is just dying may take one more.
        """
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        for _ in range(_GONE_ATTEMPTS):
            try:
                async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                    _, writer = await asyncio.open_connection(parts.hostname, port)
            except (OSError, TimeoutError) as error:
                raise self._gone(error) from error
            writer.close()
            await asyncio.sleep(_GONE_PAUSE_S)
