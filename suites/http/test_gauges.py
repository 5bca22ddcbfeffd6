"""The gauges of requests and of KV use: true under load, back at their baseline after it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.gauges import all_given_back, idle_again, idle_baseline, sampled, state
from pabench.conformance.targets import unsupported
from pabench.engines.base import Completion, GenerationRequest
from pabench.telemetry.vocabulary import KVSample

_ENOUGH_SAMPLES = 10
_ON_TIME_S = 0.25  # a sample and the pause behind it: a suite that is kept waiting for longer sees what is over
_ROUNDS = 3      # of gauges that are renewed by the clock
_REPEATS = 8  # of one prompt
_SHOWN_SHARE = 0.01  # of the pool: some engines round its use to hundredths
_HELD = "blocks of an ended or aborted request were not given back"


@pytest.mark.requirement("http/gauges-in-range")
def test_gauges_in_range(engine: EngineUnderTest) -> None:
    """A crowd: the gauges show it while it lasts, and never what cannot be; counters only grow."""
    baseline = idle_baseline(engine)
    requests = _crowd(engine)
    sent = sum(len(request.prompt) for request in requests)
    seen: list[KVSample] = []
    on_time, watched_s = 0, 0.0
    shown = False
    # Gauges that go by the clock have to be watched for some rounds of it: in one they may fall between two crowds.
    while ((on_time < _ENOUGH_SAMPLES or not (shown or watched_s >= _ROUNDS * engine.cadence_s))
           and engine.time_left_s > engine.profile.case_timeout_s / 2):
        start = time.monotonic()
        samples, in_time = _watch(engine, requests)
        seen, on_time = seen + samples, on_time + in_time
        watched_s += time.monotonic() - start
        shown = _load_shown(engine, baseline, seen, sent)
    after = idle_again(engine, "is a request that has ended still counted?")
    for sample in (*seen, after):
        if not 0 <= (sample.kv_usage or 0) <= 1 or (sample.running or 0) < 0 or (sample.waiting or 0) < 0:
            fail("KV use between 0 and 1, counts not below 0", state(sample),
                 hint="is a block given back twice, or a request counted out twice?")
        total = (sample.running or 0) + (sample.waiting or 0)
        if total > len(requests):
            fail(f"at most the {len(requests)} requests that were sent, running or waiting", state(sample))
    _check_counters([*seen, after])
    if not shown and watched_s < _ROUNDS * engine.cadence_s:
        unsupported(f"the gauges move each {engine.cadence_s:g} s, and a case has time to keep the engine busy for "
                    f"{watched_s:.1f} s: what they show under load is not seen")
    if not shown and on_time < _ENOUGH_SAMPLES:
        unsupported(f"{on_time} of {len(seen)} samples under load were on time, expected {_ENOUGH_SAMPLES}: something "
                    "else keeps the machine busy, or the metrics take long")
    if not shown:
        most = max(seen, key=lambda sample: sample.kv_usage or 0.0)
        fail("the gauges show the load while it lasts", f"{len(seen)} samples, all without running requests or without "
             f"more KV use than before: {state(baseline)}, then {state(most)}")
    engine.note = f"{len(seen)} samples under load, at most {max(sample.running or 0 for sample in seen):g} running"


def _load_shown(engine: EngineUnderTest, baseline: KVSample, seen: Sequence[KVSample], sent: int) -> bool:
    """Whether requests were seen to run and, where `sent` tokens are enough of the pool, its use to grow."""
    shows = sent >= _SHOWN_SHARE * (engine.geometry.capacity_tokens or sent)
    before = min(baseline.kv_usage or 0.0, 1 - _SHOWN_SHARE)  # some count what is cached as used, and may be full of it
    return any(sample.running for sample in seen) and (
        not shows or any((sample.kv_usage or 0.0) > before for sample in seen))


def _check_counters(samples: Sequence[KVSample]) -> None:
    for name in ("preemptions", "prefix_queries", "prefix_hits"):
        values = [value for sample in samples if (value := getattr(sample, name)) is not None]
        if values != sorted(values):
            fail(f"the counter of {name} only grows", f"{values}")
    last = samples[-1]
    if last.prefix_hits is not None and last.prefix_queries is not None and last.prefix_hits > last.prefix_queries:
        fail("no more prefix hits than prompt tokens that were looked up",
             f"{last.prefix_hits:g} hits of {last.prefix_queries:g} tokens")


@pytest.mark.requirement("http/gauges-return-to-idle", case="crowd")
def test_gauges_return_to_idle(engine: EngineUnderTest) -> None:
    """A crowd with aborts and refusals in it: afterwards all is as it was."""
    requests = _crowd(engine)
    engine.case += "; 2 more are aborted"
    with all_given_back(engine, _HELD):
        pending = engine.start_plain(requests)
        for after in (0, 1):
            engine.abort(requests[0], after)
        _check_served(pending.wait())


@pytest.mark.requirement("http/gauges-return-to-idle", case="repeats")
def test_gauges_after_repeats(engine: EngineUnderTest) -> None:
    """One prompt again and again, a whole number of blocks long: nothing is left to compute of it, and all to free."""
    length = min(2 * engine.edge, engine.longest // 3)
    request = GenerationRequest(engine.plain_prompt(length), min(engine.edge, engine.longest // 3))
    engine.case = f"{engine.block_text}; one prompt of {length} tokens, {_REPEATS} times; {request.max_tokens} tokens"
    with all_given_back(engine, "the blocks of a prompt that was cached as a whole were not given back"):
        for _ in range(_REPEATS // 2):
            _check_served(engine.generate([request]))
        _check_served(engine.generate([request] * (_REPEATS // 2)))


def _crowd(engine: EngineUnderTest) -> list[GenerationRequest]:
    length, tokens = min(2 * engine.edge + 1, engine.longest // 3), min(4 * engine.edge, engine.longest // 2)
    count = engine.profile.concurrency
    engine.case = f"{count} requests of {length} prompt tokens at once, {tokens} tokens each"
    return [GenerationRequest(engine.plain_prompt(length), tokens) for _ in range(count)]


def _watch(engine: EngineUnderTest, requests: Sequence[GenerationRequest]) -> tuple[list[KVSample], int]:
    """The gauges while `requests` run, and how many of these samples were on time."""
    pending = engine.start_plain(requests)
    seen, on_time = [sampled(engine)], 0
    while not pending.done:
        start = time.monotonic()
        seen.append(sampled(engine))
        time.sleep(0.02)
        on_time += time.monotonic() - start < _ON_TIME_S
    _check_served(pending.wait())
    return seen, on_time


def _check_served(answers: Sequence[Completion]) -> None:
    for answer in answers:
        if answer.error is not None:
            fail("every request is served", answer.error)
