"""no-starvation is asked of a queue: of so many clients that some wait, or not at all."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pabench.conformance.exchange import Exchange
from pabench.conformance.failure import CaseFailed
from pabench.conformance.verify import Ask
from pabench.engines.base import CAPABILITIES, Choice, Completion, GenerationRequest
from pabench.telemetry.vocabulary import KVSample
from tests.conformance.test_sizes import Done, PerfectEngine, suite_file

LOAD = suite_file("test_load")


class Sent(Done):
    """Under way at the first look, so that the gauges are looked at."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        super().__init__([], exchanges)

    @property
    def done(self) -> bool:
        self._looks += 1
        return self._looks > 1


class Queue(PerfectEngine):
    """Serves `slots` requests at once, a second each; who waits comes first, or last (`upside_down`)."""

    def __init__(self, slots: int, *, gauges: bool, upside_down: bool = False) -> None:
        super().__init__("smoke", 16, 512, 2048)
        self.slots, self.gauges, self.upside_down = slots, gauges, upside_down
        self.clients = 0

    def can(self, capability: str) -> bool:
        return capability in CAPABILITIES and (self.gauges or capability != "running_metrics")

    def metrics(self) -> KVSample | None:
        return KVSample(0.0, running=min(self.slots, self.clients), waiting=max(0, self.clients - self.slots))

    def start(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> Sent:  # type: ignore[override]
        self.clients = concurrency or len(asks)
        sent = [Exchange(ask.request, ask.name) for ask in asks]
        waiting = [(0.0, i) for i in range(self.clients)]
        coming, running = self.clients, []
        while waiting or running:
            now = running[0][0] if running else 0.0
            while waiting and len(running) < self.slots:
                sent_s, i = waiting.pop(-1 if self.upside_down else 0)
                begin_s = max(now, sent_s)
                choice = Choice(0, token_times_s=[begin_s + 0.1, begin_s + 1.0])
                sent[i].sent_s, sent[i].end_s = sent_s, begin_s + 1.0 + i * 1e-6
                sent[i].completion = Completion([choice])
                heapq.heappush(running, (sent[i].end_s or 0.0, i))
            end_s, _ = heapq.heappop(running)
            if coming < len(sent):
                waiting.append((end_s, coming))
                coming += 1
        self._wire.asked = True
        return Sent(sent)


@pytest.mark.parametrize("gauges", [True, False])
@pytest.mark.parametrize(("slots", "clients"), [(4, 12), (16, 24), (50, 96)])
def test_clients_come_until_some_wait(slots: int, clients: int, gauges: bool) -> None:
    engine = Queue(slots, gauges=gauges)
    LOAD.test_no_starvation(engine)
    assert engine.note.startswith(f"{clients} clients, ")
    assert f"{clients - slots} of the first waited for others to end" in engine.note


@pytest.mark.parametrize("gauges", [True, False])
@pytest.mark.parametrize("slots", [4, 20])
def test_a_queue_that_is_served_from_its_wrong_end_is_found(slots: int, gauges: bool) -> None:
    with pytest.raises(CaseFailed, match="a request is overtaken by at most"):
        LOAD.test_no_starvation(Queue(slots, gauges=gauges, upside_down=True))


def test_a_pool_that_is_known_is_overrun_at_once() -> None:
    """Of 2048 slots, 33 - 1 a client and so 2 blocks of 16, 64 clients hold all: a quarter more are sent."""
    engine = Queue(64, gauges=True)
    engine.profile = replace(engine.profile, concurrency=11)  # twice that, and twice again, are 44
    LOAD.test_no_starvation(engine)
    assert engine.note.startswith("80 clients, 16 of the first waited")


@pytest.mark.parametrize(("apart_s", "waited"), [(0.0, 2), (0.04, 2), (0.2, 0)])
def test_to_be_sent_late_is_not_to_wait(apart_s: float, waited: int) -> None:
    """A second an answer, four at once: the fifth and the sixth wait, if they come before the first is half done."""
    first_s = [i * apart_s + 0.1 for i in range(4)] + [1.1 + i * apart_s for i in range(2)]
    exchanges = []
    for i, token_s in enumerate(first_s):
        exchange = Exchange(GenerationRequest("t300", 8), f"request {i}")
        exchange.sent_s, exchange.end_s = i * apart_s, token_s + 0.9
        exchange.completion = Completion([Choice(0, token_times_s=[token_s, token_s + 0.9])])
        exchanges.append(exchange)
    assert LOAD._waited(exchanges) == waited


def test_what_waits_for_a_step_is_no_queue() -> None:
    """All are served at once, and the gauge shows those that have just come."""
    engine = Queue(16, gauges=True)
    engine.metrics = lambda: KVSample(0.0, running=1, waiting=11)  # type: ignore[method-assign]
    LOAD.test_no_starvation(engine)
    assert engine.note.startswith("24 clients")


@pytest.mark.parametrize("gauges", [True, False])
def test_where_nobody_waits_nothing_is_shown(gauges: bool) -> None:
    with pytest.raises(pytest.skip.Exception, match="nobody waited among 768 clients at once"):
        LOAD.test_no_starvation(Queue(5000, gauges=gauges))
