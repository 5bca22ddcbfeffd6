"""One engine for the length of a run: how it is reached, what it told about itself, and whether it still lives.

Calls run on an event loop in a thread of their own, so that tests are plain functions, and every call is bounded
twice: by the client, and by the wait for it. An engine that hangs cannot hang the suite.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import shlex
import threading
import time
from collections.abc import Coroutine
from functools import cached_property
from typing import Any, TypeVar

from pabench.conformance.exchange import Exchange, RawPost
from pabench.conformance.profiles import Profile
from pabench.conformance.selfcheck import SelfCheck
from pabench.engines import EngineClient, dialect, examine
from pabench.engines.base import EngineFacts, GenerationRequest
from pabench.engines.cleaning import clean
from pabench.errors import EngineError, EngineTimeout
from pabench.probe import FIRST_RING, SEP, ProbeSpec

_GRACE_S = 10.0           # for the client to notice its own time limit
_EXAMINED_S = 10.0        # for each request that finds out what the engine can do
_ALIVE_TIMEOUT_S = 15.0   # for one token of an idle engine
_ASSUMED_CONTEXT, _LEAST_CONTEXT = 2048, 64  # tokens, of an engine that does not tell
_TOO_LONG = (400, 413, 422)
_RESTART_S = 0.5          # between two looks at an engine that may be going down

T = TypeVar("T")


class BackgroundLoop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pabench-engine", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start `coroutine`; its future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """The result of `coroutine`. Raises EngineTimeout when there is none after `timeout_s` and a grace."""
        return wait_for(self.submit(coroutine), timeout_s)

    def close(self) -> None:
        """Cancel what still runs, stop the thread, free the loop."""
        self.submit(_cancel_others()).result(_GRACE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE_S)
        self._loop.close()


def wait_for(future: concurrent.futures.Future[T], timeout_s: float) -> T:
    """The result of `future`. Raises EngineTimeout when there is none after `timeout_s` and a grace."""
    try:
        return future.result(timeout_s + _GRACE_S)
    except TimeoutError as error:
        if future.done():
            raise
        future.cancel()
        raise EngineTimeout(f"no end after {timeout_s:g} s, given up") from error


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class EngineSession:
    """The engine under test. `gone` says why nothing more can be asked of it, None while it lives."""

    def __init__(
        self, client: EngineClient, facts: EngineFacts, spec: ProbeSpec | None, profile: Profile, seed: int,
        loop: BackgroundLoop, cadence_s: float = 0.0,
    ) -> None:
        self.client = client
        self.cadence_s = cadence_s  # between two renewals of this very engine's gauges
        self.facts = facts
        self.spec = spec
        self.profile = profile
        self.seed = seed
        self.loop = loop
        self.gone: str | None = None
        self.selfcheck = SelfCheck(facts, seed)  # for a model that is not the probe

    @property
    def impl(self) -> str:
        """The engine and its address, for failure texts."""
        version = f" {clean(self.facts.version, 40)}" if self.facts.version else ""
        return f"{self.facts.dialect}{version} at {self.client.url}"

    def curl(self, exchange: Exchange) -> str:
        """The command that sends a request by hand; a key has to be added to it."""
        request = exchange.request
        path, body = (request.path, request.text) if isinstance(request, RawPost) else self.client.written(request)
        return shlex.join(["curl", self.client.url + path, "-H", "Content-Type: application/json", "-d", body])

    def close(self) -> None:
        """Close all connections and the loop."""
        try:
            self.loop.run(self.client.__aexit__(None, None, None), 5.0)
        finally:
            self.loop.close()

    @cached_property
    def context_tokens(self) -> int:
        """The longest context, found out where the engine does not tell: what its probe, or a model of now, surely has;
        half of that where a prompt so long is refused, and so on.
        """
        if self.facts.max_context_tokens is not None:
            return self.facts.max_context_tokens
        length = self.spec.max_context_tokens if self.spec else _ASSUMED_CONTEXT
        while length > _LEAST_CONTEXT:
            request = GenerationRequest(plain_prompt(self.facts, length - 1), max_tokens=1, stream=False)
            try:
                answer = self.loop.run(self.client.generate(request), self.profile.request_timeout_s)
            except EngineTimeout:
                pass  # too long for this machine, too
            else:
                if answer.status not in _TOO_LONG:
                    break
            length //= 2
        return length

    def still_lives(self) -> bool:
        """Whether the engine answers a request of one token; sets `gone` when it does not.

        Asked after every failure: what killed the engine is the case before, not the one behind it.
        """
        for attempt in (1, 2):
            try:
                if self.loop.run(self.client.healthy(), 10.0) and self._answers():
                    return True
                reason = "it says that it is not healthy"
            except EngineError as error:
                reason = str(error)
            except TimeoutError:
                reason = f"it gives no token within {self._alive_timeout_s:g} s"
            if attempt == 1:
                time.sleep(_RESTART_S)
        self.gone = reason
        return False

    @property
    def _alive_timeout_s(self) -> float:
        return _ALIVE_TIMEOUT_S * self.profile.patience

    def _answers(self) -> bool:
        request = GenerationRequest(plain_prompt(self.facts, 8), max_tokens=1, stream=False)
        limit_s = self._alive_timeout_s
        completion = self.loop.run(asyncio.wait_for(self.client.generate(request), limit_s), limit_s)
        return completion.status < 500


def plain_prompt(facts: EngineFacts, length: int, first: int = 0) -> tuple[int, ...] | str:
    """A prompt of `length` tokens that any model takes: token ids where the engine takes them, else words.

    It says nothing about the answer. `first` chooses among prompts that differ from their second token on.
    """
    if "token_ids" in facts.capabilities:
        return (SEP, *(FIRST_RING + (first + i) % 512 for i in range(length - 1)))
    return " ".join(f"t{FIRST_RING + (first + i) % 512}" for i in range(length))


def open_session(
    url: str,
    profile: Profile,
    seed: int,
    *,
    dialect_name: str | None,
    model: str | None,
    probe: str | None,
    api_key: str | None,
) -> EngineSession:
    """Examine the engine at `url` and connect to it. Raises EngineUnreachable and UsageError."""
    loop = BackgroundLoop()
    try:
        # Each of its requests is bounded; how long all of them take is the engine's to say.
        found = loop.submit(examine(url, dialect=dialect_name, model=model, probe=probe, api_key=api_key,
                                    timeout_s=_EXAMINED_S * profile.patience)).result()
        client = EngineClient(
            url, dialect(found.facts.dialect), found.facts.model, timeout_s=profile.request_timeout_s, api_key=api_key
        )
        loop.run(client.__aenter__(), 5.0)
    except BaseException:
        loop.close()
        raise
    return EngineSession(client, found.facts, found.probe, profile, seed, loop, found.cadence_s)
