"""The requests of one case on the wire: sent, bounded in time, recorded, named where one of them goes wrong."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

from pabench.conformance.exchange import Exchange, RawPost
from pabench.conformance.session import EngineSession, wait_for
from pabench.engines.base import Completion, GenerationRequest
from pabench.engines.client import ABORT_DELAY_S
from pabench.errors import EngineDied, EngineError, EngineTimeout, EngineUnreachable

_BUSY_PAUSE_S = 0.1  # before an engine that took no more requests is asked again
_NAMED = 3  # requests in an error

T = TypeVar("T")
Verify = Callable[[list[Completion]], None]


class Wire:
    """`exchanges` holds all requests of the case, in the order of sending."""

    def __init__(self, session: EngineSession) -> None:
        self.exchanges: list[Exchange] = []
        self.asked = False  # whether anything at all was asked of the engine
        self._session = session
        self._pending: list[Pending] = []
        self._deadline = time.monotonic() + session.profile.case_timeout_s
        self._served_s = 0.0  # when an answer came last that was none of HTTP 429

    @property
    def time_left_s(self) -> float:
        """Seconds until the case has used up its time."""
        return max(0.0, self._deadline - time.monotonic())

    def prolong(self, seconds: float) -> None:
        """Give the case so much time more: it was spent on what no engine can hurry."""
        self._deadline += seconds

    def cancel(self) -> None:
        """Give up what is still under way: its connections are closed."""
        for pending in self._pending:
            pending.cancel()

    def start(self, exchanges: list[Exchange], concurrency: int | None, verify: Verify | None = None) -> Pending:
        """Send without waiting; at most `concurrency` requests at once (all by default), the next when one ends."""
        if self._session.gone is not None:
            raise EngineDied(self._session.gone)
        self._record(exchanges)
        workers = min(concurrency or len(exchanges), len(exchanges))
        pending = Pending(self, exchanges, self._session.loop.submit(self._work(exchanges, workers)), verify)
        self._pending.append(pending)
        return pending

    def send(self, exchange: Exchange) -> Completion:
        """Send one request and wait for its answer."""
        self._record([exchange])
        return self.call(self._generate(exchange), [exchange])

    def post(self, exchange: Exchange) -> tuple[int, bytes]:
        """Send a body as it is: status and body of the answer."""
        request = exchange.request
        assert isinstance(request, RawPost)
        self._record([exchange])
        exchange.sent_s = time.monotonic()
        status, body = self.call(self._session.client.post_raw(request.path, request.body), [exchange])
        exchange.end_s, exchange.completion = time.monotonic(), Completion(status=status)
        return status, body

    def abort(self, exchange: Exchange, after_tokens: int) -> Completion:
        """Stream and disconnect after so many tokens; the answer so far."""
        self._record([exchange])
        return self.call(self._abort(exchange, after_tokens), [exchange])

    def abort_all(self, exchanges: list[Exchange], delays_s: Sequence[float]) -> None:
        """Stream all at once; disconnect from each so many seconds after it was sent."""
        self._record(exchanges)

        async def all_of_them() -> None:
            await asyncio.gather(*(self._abort(exchange, 0, delay_s)
                                   for exchange, delay_s in zip(exchanges, delays_s, strict=True)))

        self.call(all_of_them(), exchanges)

    def call(self, coroutine: Coroutine[Any, Any, T], exchanges: list[Exchange]) -> T:
        """Run one call; an error names its requests."""
        self.asked = True
        try:
            return self._session.loop.run(coroutine, self._session.profile.request_timeout_s)
        except EngineError as error:
            for exchange in exchanges:
                exchange.error = error
            self.raise_named(error, exchanges)

    def raise_named(self, error: EngineError, exchanges: Sequence[Exchange]) -> NoReturn:
        """Raise `error` with the requests that were under way when it struck."""
        struck = [i for i, exchange in enumerate(exchanges) if exchange.error is not None]
        named = ", ".join(f"{exchanges[i].described}, {i + 1} of {len(exchanges)}" for i in struck[:_NAMED])
        more = f" and {len(struck) - _NAMED} more" if len(struck) > _NAMED else ""
        raise type(error)(f"{error}; under way: {named or 'no request'}{more}") from error

    def _record(self, exchanges: list[Exchange]) -> None:
        self.exchanges += exchanges
        self.asked |= bool(exchanges)

    async def _work(self, exchanges: list[Exchange], workers: int) -> None:
        """A closed loop: each of `workers` clients takes the next request when its last has ended."""
        queue = iter(exchanges)

        async def client() -> None:
            for exchange in queue:
                if not await self._exchange(exchange):
                    return

        try:
            async with asyncio.timeout(self.time_left_s):
                await asyncio.gather(*(client() for _ in range(workers)))
        except TimeoutError:
            limit_s = self._session.profile.case_timeout_s
            for exchange in exchanges:
                if exchange.completion is None and exchange.error is None:
                    exchange.error = EngineTimeout(f"no answer within the {limit_s:g} s of a case")

    async def _exchange(self, exchange: Exchange) -> bool:
        """Send one request and keep what became of it; whether to go on."""
        try:
            await self._generate(exchange)
        except EngineError as error:
            exchange.error = error
        exchange.end_s = time.monotonic()
        return not isinstance(exchange.error, (EngineDied, EngineUnreachable, EngineTimeout))

    async def _generate(self, exchange: Exchange) -> Completion:
        """Ask, and again where the engine takes no more requests at once (429), as long as it serves others."""
        assert isinstance(exchange.request, GenerationRequest)
        exchange.sent_s = first_s = time.monotonic()
        while (answer := await self._session.client.generate(exchange.request)).status == HTTPStatus.TOO_MANY_REQUESTS:
            idle_s = time.monotonic() - max(first_s, self._served_s)
            if idle_s > self._session.profile.refusal_s or self.time_left_s < _BUSY_PAUSE_S:
                break
            exchange.num_busy += 1
            await asyncio.sleep(_BUSY_PAUSE_S)
            exchange.sent_s = time.monotonic()
        else:
            self._served_s = time.monotonic()
        exchange.completion, exchange.end_s = answer, time.monotonic()
        return answer

    async def _abort(self, exchange: Exchange, after_tokens: int, delay_s: float = ABORT_DELAY_S) -> Completion:
        assert isinstance(exchange.request, GenerationRequest)
        exchange.sent_s = time.monotonic()
        exchange.completion = await self._session.client.start_then_abort(exchange.request, after_tokens, delay_s)
        exchange.end_s = time.monotonic()
        return exchange.completion


class Pending:
    """Requests under way."""

    def __init__(
        self, wire: Wire, exchanges: list[Exchange], future: concurrent.futures.Future[None], verify: Verify | None
    ) -> None:
        self.exchanges = exchanges
        self._wire = wire
        self._future = future
        self._verify = verify

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return self._future.done()

    def cancel(self) -> None:
        """Disconnect from all that have not ended."""
        self._future.cancel()

    def wait(self) -> list[Completion]:
        """All answers, in the order of the requests. Raises the first EngineError, naming the request."""
        wait_for(self._future, self._wire.time_left_s)
        for exchange in self.exchanges:
            if exchange.error is not None:
                self._wire.raise_named(exchange.error, self.exchanges)
        return [exchange.completion for exchange in self.exchanges if exchange.completion is not None]

    def verify(self) -> list[Completion]:
        """All answers, each equal to its oracle token by token. Raises CaseFailed for the first that is not."""
        completions = self.wait()
        if self._verify is not None:
            self._verify(completions)
        return completions
