"""Where what a case is about did not happen, or cannot be known, it is UNSUPPORTED, however right all answers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pabench.conformance.verify import Ask
from pabench.engines.base import Completion
from pabench.telemetry.vocabulary import KVSample
from tests.conformance.test_sizes import ABORTS, FIRST_HOLDER, PREEMPTION, SHARING, PerfectEngine, suite_file

LOAD = suite_file("test_load")


class Engine(PerfectEngine):
    """One with a context that its pool cannot hold twice."""

    def __init__(self) -> None:
        super().__init__("smoke", 16, 2048, 2048)

    def lacks(self, *capabilities: str) -> None:
        self.facts = replace(self.facts, capabilities=self.facts.capabilities - {*capabilities})


class Waits(Engine):
    """It preempts nothing: who finds no room waits."""

    def metrics(self) -> KVSample | None:
        return KVSample(0.0, running=0, waiting=0, kv_usage=0.0, preemptions=3)


class CountsNone(Engine):
    """It does not say whether it preempts."""

    def metrics(self) -> KVSample | None:
        return KVSample(0.0, running=0, waiting=0, kv_usage=0.0)


class NoGauges(Engine):
    """It does not say anything of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lacks("running_metrics", "kv_metrics")

    def metrics(self) -> KVSample | None:
        return None


class NoCache(Engine):
    """It computes every prompt, and says so."""

    def __init__(self) -> None:
        super().__init__()
        assert self.facts.kv is not None
        self.facts = replace(self.facts, kv=replace(self.facts.kv, prefix_caching=False))


class NoHits(Engine):
    """It has a cache, it says, and finds nothing in it; a count of 0 is left out."""

    def _cached(self, ask: Ask) -> Any:
        return None


class TellsNoHits(NoHits):
    """Whether it finds anything it does not say."""

    def __init__(self) -> None:
        super().__init__()
        self.lacks("cached_tokens")


FULL_POOL = (PREEMPTION.test_preemption_exact, PREEMPTION.test_two_large, PREEMPTION.test_preempted_samples,
             PREEMPTION.test_samples_in_a_full_pool)
FOUND_AGAIN = (SHARING.test_same_block_behind_another_prefix, FIRST_HOLDER.test_shared_block_outlives_first_holder)


@pytest.mark.parametrize(("case", "engine", "why"), [
    *((case, Waits, "preempted nothing") for case in FULL_POOL),
    *((case, engine, "does not count preemptions") for case in FULL_POOL for engine in (CountsNone, NoGauges)),
    *((case, NoCache, "has no prefix cache") for case in FOUND_AGAIN),
    (FOUND_AGAIN[0], NoHits, "no block was found again"), (FOUND_AGAIN[1], NoHits, "nothing was shared"),
    (ABORTS.test_abort_leaves_others_alone, NoGauges, "shows in the gauges alone"),
])
def test_what_was_not_shown_is_no_pass(case: Callable[..., None], engine: type[Engine], why: str) -> None:
    with pytest.raises(pytest.skip.Exception, match=why):
        case(engine())


@pytest.mark.parametrize(("case", "engine"), [
    *((case, Engine) for case in (*FULL_POOL, *FOUND_AGAIN, ABORTS.test_abort_leaves_others_alone)),
    *((case, TellsNoHits) for case in FOUND_AGAIN),
])
def test_what_was_shown_or_cannot_be_told_is_one(case: Callable[..., None], engine: type[Engine]) -> None:
    asked = engine()
    case(asked)
    assert asked.asked


class Recorded(Engine):
    """It keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asks: list[Ask] = []

    def ask(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> list[Completion]:
        self.asks += asks
        return super().ask(asks, concurrency=concurrency)


def test_two_large_sequences_both_begin() -> None:
    """Where their prompts did not fit together, the second would wait for the first to end, and nobody be preempted."""
    engine = Recorded()
    PREEMPTION.test_two_large(engine)
    one, other = engine.asks
    assert len(one.prompt.prompt) + len(other.prompt.prompt) <= 2048
    assert min(len(ask.prompt.prompt) + ask.tokens for ask in engine.asks) > 2048 // 2


@given(pool=st.integers(12, 4096), blocks=st.integers(3, 300), samples=st.integers(1, 8))
def test_samples_outgrow_the_pool_wherever_prompts_wait(pool: int, blocks: int, samples: int) -> None:
    """As many prompts as fit with all their samples run, and those overrun the pool."""
    running = max(1, pool // (blocks - 1 + samples))
    own = 1 + PREEMPTION._outgrowing(pool, blocks, samples)
    assume(running > 1 or blocks - 1 + samples <= pool)
    assert running * (blocks - 1 + samples * own) > pool


def test_an_empty_prompt_is_no_malformed_one() -> None:
    """`empty-prompt-then-healthy` lets an engine answer it."""
    bodies = [body for _, body in LOAD._malformed(Engine())]
    assert len(bodies) > 8
    assert [body for body in bodies if isinstance(body, dict) and body["prompt"] in ("", [])] == []
