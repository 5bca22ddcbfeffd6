"""Evictions are claimed of a pool that was overrun, and of no other."""

from __future__ import annotations

import time

import pytest

from pabench.conformance.churn import churn, not_overrun
from tests.conformance.test_sizes import CACHE, SHARING, PerfectEngine


def test_a_pool_is_overrun_where_that_is_soon_done() -> None:
    engine = PerfectEngine("smoke", 16, 512, 65536)
    CACHE.test_revisited_after_churn(engine)
    assert int(engine.note.split()[0]) >= 65536


@pytest.mark.parametrize(("capacity", "reason"), [
    (262112, r"\d+ tokens passed through a pool of 262112, so that nothing had to be evicted"),
    (None, "the engine does not tell how many blocks it has"),
])
@pytest.mark.parametrize("test", [CACHE.test_revisited_after_churn, SHARING.test_shared_block_outlives_first_holder])
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
