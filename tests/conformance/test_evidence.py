"""A case of the http level that has shown nothing is no pass, and a sound engine's ways are no failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import CaseFailed
from pabench.conformance.verify import Ask
from pabench.engines.base import Completion
from pabench.telemetry.vocabulary import KVSample
from tests.conformance.test_sizes import ANSWERS, PREEMPTION, PerfectEngine, suite_file

LOAD = suite_file("test_load")


class NoRoute(PerfectEngine):
    """Refuses whatever comes by the route of malformed bodies."""

    def post_raw(self, path: str, body: bytes | Mapping[str, Any]) -> tuple[int, bytes]:
        return 404, b"no such route"


@pytest.mark.parametrize("case", [LOAD.test_bad_input_then_healthy, LOAD.test_empty_prompt_then_healthy])
def test_refusals_of_a_route_that_refuses_everything_tell_nothing(case: Callable[[EngineUnderTest], None]) -> None:
    with pytest.raises(pytest.skip.Exception, match="a good request to /v1/completions is answered with HTTP 404"):
        case(NoRoute("smoke", 16, 512, 2048))


class Waits(PerfectEngine):
    """Preempts nothing."""

    def metrics(self) -> KVSample:
        return KVSample(0.0, running=0, waiting=0, kv_usage=0.0, preemptions=3)


def test_two_large_sequences_without_a_preemption_tell_nothing() -> None:
    with pytest.raises(pytest.skip.Exception, match="the engine preempted nothing"):
        PREEMPTION.test_two_large(Waits("smoke", 16, 512, 512))


def test_a_pool_of_few_blocks_has_no_room_for_two_large_sequences() -> None:
    with pytest.raises(pytest.skip.Exception, match="no room for two rings"):
        PREEMPTION.test_two_large(PerfectEngine("smoke", 16, 512, 7 * 16))


class TextAlone(PerfectEngine):
    """Tells no token ids. `streamed` and `whole` are its texts."""

    streamed, whole = "a b c", "a b c"

    def ask(self, asks: Sequence[Ask], *, concurrency: int | None = None) -> list[Completion]:
        answers = super().ask(asks)
        for each, answer in zip(asks, answers, strict=True):
            text = self.streamed if each.stream else self.whole
            answer.choices = [replace(choice, text=text, token_ids=None) for choice in answer.choices]
        return answers


def test_a_stream_of_text_may_part_at_a_near_tie_and_may_not_lose_a_space() -> None:
    engine = TextAlone("smoke", 16, 512, 2048)
    engine.streamed = "a b d"
    ANSWERS.test_stream_equals_whole(engine)
    engine.streamed = "a bc"
    with pytest.raises(CaseFailed, match="at character 3 'a b c'; got 'a bc'"):
        ANSWERS.test_stream_equals_whole(engine)


class Stale(PerfectEngine):
    """Its gauges move with a step alone."""

    nudged = False

    def metrics(self) -> KVSample:
        return KVSample(0.0, running=0 if self.nudged else 1)

    def _nudge(self) -> None:
        self.nudged = True


@pytest.mark.parametrize("within_s", [0.1, 0.3, 2.0])
def test_gauges_get_a_step_to_move_with_before_the_time_is_up(within_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now_s.__setitem__(0, now_s[0] + seconds))
    engine = Stale("smoke", 16, 512, 2048)
    sample = EngineUnderTest.metrics_when_stable(engine, lambda sample: sample.running == 0, within_s=within_s)
    assert sample.running == 0
