"""Evictions are claimed of a pool that was overrun, and of no other."""

from __future__ import annotations

import time

import pytest

from pabench.conformance.churn import churn, not_overrun
from pabench.conformance.verify import Ask
from pabench.engines.base import Completion
from tests.conformance.test_sizes import CACHE, FIRST_HOLDER, PerfectEngine


def test_a_pool_is_overrun_where_that_is_soon_done() -> None:
    engine = PerfectEngine("smoke", 16, 512, 65536)
    CACHE.test_revisited_after_churn(engine)
    assert int(engine.note.split()[0]) >= 65536


@pytest.mark.parametrize(("capacity", "reason"), [
    (262112, r"\d+ tokens passed through a pool of 262112, so that nothing had to be evicted"),
    (None, "the engine does not tell how many blocks it has"),
])
@pytest.mark.parametrize("test", [CACHE.test_revisited_after_churn,
                                  FIRST_HOLDER.test_shared_block_outlives_first_holder])
def test_what_overruns_no_pool_shows_no_eviction(
    test: object, capacity: int | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]

    def slowly() -> float:
        now_s[0] += 1.0
        return now_s[0]

    monkeypatch.setattr(time, "monotonic", slowly)
    with pytest.raises(pytest.skip.Exception, match=reason):
        test(PerfectEngine("smoke", 16, 512, capacity))  # type: ignore[operator]


@pytest.mark.parametrize(("times_s", "reason"), [
    ([0.5, *[1.0] * 200], "A had ended, for B had not begun"),
    ([-1.0, *[-0.5] * 200], "0 tokens passed through a pool of 2048"),
    ([-1.0, *[-0.5] * 100, *[1.0] * 100], "0 tokens passed through a pool of 2048"),
    ([0.0] * 200, "B's answer did not come token by token"),
    ([], "B's answer did not come token by token"),
    ([-1.0, *[1.0] * 50], "B's answer did not come token by token"),  # in pieces of two
])
def test_a_shared_block_is_judged_only_where_others_passed_before_it_was_read(
    times_s: list[float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A and all who pass end at 0; B's answer comes at `times_s`, so that it reads too early, or is not told when."""
    answer = PerfectEngine._answer

    def timed(self: PerfectEngine, ask: Ask) -> Completion:
        completion = answer(self, ask)
        completion.choices[0].token_times_s = times_s[:ask.tokens]
        return completion

    monkeypatch.setattr(PerfectEngine, "_answer", timed)
    monkeypatch.setattr(FIRST_HOLDER, "_READERS", 1)
    with pytest.raises(pytest.skip.Exception, match=reason):
        FIRST_HOLDER.test_shared_block_outlives_first_holder(PerfectEngine("smoke", 16, 512, 2048))


def test_churn_is_given_up_when_it_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    engine = PerfectEngine("smoke", 16, 512, 65536)
    told = engine.told

    def slow(asks: object, **more: object) -> object:
        now_s[0] += 1.0
        return told(asks, **more)  # type: ignore[arg-type]

    engine.told = slow  # type: ignore[method-assign, assignment]
    passed = churn(engine, 65536)
    assert 0 < passed < 65536
    assert now_s[0] == 1.0
    assert "start the engine with fewer blocks" in not_overrun(engine, passed)
    assert not_overrun(engine, 65536) == ""
