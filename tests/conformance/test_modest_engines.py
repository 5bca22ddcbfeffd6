"""Engines that are sound and take less: so many requests at once, or a context that they do not tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pabench.conformance.exchange import Exchange
from pabench.conformance.profiles import PROFILES
from pabench.conformance.session import BackgroundLoop, EngineSession
from pabench.conformance.wire import Wire
from pabench.engines.base import Choice, Completion, EngineFacts, GenerationRequest
from pabench.errors import EngineTimeout
from pabench.probe import PRESETS, ProbeSpec

REQUEST = GenerationRequest((5, 6, 7), max_tokens=1)


class Modest:
    """In place of an EngineClient: refuses whom it has no place for, or whose prompt is too long."""

    def __init__(self, places: int = 1 << 30, context: int = 1 << 30) -> None:
        self.places, self.context = places, context
        self.here, self.most, self.lengths = 0, 0, list[int]()

    async def generate(self, request: GenerationRequest) -> Completion:
        if self.here >= self.places:
            return Completion(status=429, error="Model is overloaded")
        self.lengths.append(len(request.prompt))
        if self.context == 0:
            raise EngineTimeout("too long")
        if len(request.prompt) + request.max_tokens > self.context:
            return Completion(status=400, error="too long")
        self.here += 1
        self.most = max(self.most, self.here)
        await asyncio.sleep(0.05)
        self.here -= 1
        return Completion(status=200, choices=[Choice(0, token_ids=[1], finish_reason="length")])


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    own = BackgroundLoop()
    yield own
    own.close()


def session_with(client: Modest, loop: BackgroundLoop, spec: ProbeSpec | None = None) -> EngineSession:
    facts = EngineFacts("openai", "m", None, capabilities=frozenset({"token_ids"}))
    return EngineSession(client, facts, spec, PROFILES["smoke"], 0, loop)  # type: ignore[arg-type]


def test_who_is_told_to_come_again_does(loop: BackgroundLoop) -> None:
    client = Modest(places=2)
    wire = Wire(session_with(client, loop))
    exchanges = [Exchange(REQUEST, str(i)) for i in range(8)]
    answers = wire.start(exchanges, None).wait()
    assert [answer.status for answer in answers] == [200] * 8
    assert client.most == 2
    assert sum(exchange.num_busy > 0 for exchange in exchanges) == 6


def test_an_engine_that_serves_nobody_is_not_asked_for_ever(
    loop: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_with(Modest(places=0), loop)
    monkeypatch.setattr("pabench.conformance.wire._BUSY_PAUSE_S", 0.01)
    session.profile = replace(session.profile, refusal_s=0.1)
    exchange = Exchange(REQUEST)
    assert Wire(session).send(exchange).status == 429
    assert 5 <= exchange.num_busy <= 11


@pytest.mark.parametrize(("spec", "context", "found"), [
    (PRESETS["gqa"], 4096, 4096), (PRESETS["gqa"], 1024, 1024), (PRESETS["gqa"], 1500, 1024), (None, 700, 512),
    (None, 0, 64),  # it gives no answer at all
])
def test_a_context_that_is_not_told_is_found(
    spec: ProbeSpec | None, context: int, found: int, loop: BackgroundLoop
) -> None:
    client = Modest(context=context)
    session = session_with(client, loop, spec)
    assert client.lengths == [], "before anybody needs it, nothing is asked"
    assert session.context_tokens == found
    asked = len(client.lengths)
    assert session.context_tokens == found
    assert len(client.lengths) == asked, "it is asked once"
