"""Deadlines of single tokens: by hand, and against the definition token by token."""

from __future__ import annotations

from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.analysis import summarise
from pabench.analysis.deadlines import deadlines, miss_rate
from pabench.analysis.slo import SLO, in_time
from pabench.load.records import RequestRecord
from tests.analysis.by_hand import A, B, frame, made
from tests.load.support import workload


def answer(times_s: list[float], choices: list[int] | None = None) -> RequestRecord:
    return RequestRecord("r", 0, None, intended_s=0.0, sent_s=0.0, first_s=times_s[0] if times_s else None,
                         last_s=times_s[-1] if times_s else None, end_s=9.0, outcome="ok", token_times_s=times_s,
                         token_choices=choices or [0] * len(times_s))


@pytest.mark.parametrize(("times_s", "ttft_ms", "missed", "total"), [
    ([0.1, 0.2, 0.3, 0.4], None, 0, 3),     # at pace: the first has no deadline
    ([0.1, 0.2, 0.3, 0.4], 100, 0, 4),
    ([0.21, 0.31, 0.41, 0.51], 100, 2, 5),  # a late first token misses its own, and one goes by; then at pace
    ([0.1, 0.11, 0.12, 0.4], None, 0, 3),   # early ones are in store
    ([0.1, 0.2, 0.61, 0.71], None, 4, 6),   # due at 0.3: missed, and those of 0.4, 0.5, 0.6; then at pace
    ([0.1, 0.25, 0.4, 0.55], None, 3, 3),   # each late by half a pace: none goes by
    ([0.5], None, 0, 0),
    ([], None, 0, 0),
])
def test_by_hand(times_s: list[float], ttft_ms: float | None, missed: int, total: int) -> None:
    """A token each 100 ms."""
    found = deadlines(frame([answer(times_s)]), 100, ttft_ms)
    assert (found.missed.tolist(), found.total.tolist()) == ([missed], [total])


def test_each_sample_has_its_own_reader() -> None:
    both = answer([0.1, 0.1, 0.2, 0.35, 0.3, 0.45], [0, 1, 0, 1, 0, 1])
    found = deadlines(frame([both, answer([0.1, 0.41])]), 100)
    assert found.missed.tolist() == [2, 3]
    assert found.total.tolist() == [2 + 2 + 1, 1 + 2]


def _one_by_one(times_s: list[float], pace_s: float, first_s: float | None) -> tuple[int, int]:
    """The definition, as a loop."""
    due, missed, total = first_s, 0, 0
    for at in times_s:
        if due is not None:
            total += 1
            if at - due > 1e-9:
                missed += 1 + floor((at - due) / pace_s)
                total += floor((at - due) / pace_s)
        due = (at if due is None else max(due, at)) + pace_s
    return missed, total


@given(st.lists(st.lists(st.floats(0.001, 0.5), max_size=12), max_size=5), st.sampled_from([None, 70.0]),
       st.floats(5, 200))
def test_as_defined(gaps: list[list[float]], ttft_ms: float | None, deadline_ms: float) -> None:
    times = [np.cumsum(one).tolist() for one in gaps]
    found = deadlines(frame([answer(one) for one in times]), deadline_ms, ttft_ms)
    expected = [_one_by_one(one, deadline_ms / 1e3, None if ttft_ms is None else ttft_ms / 1e3) for one in times]
    for name, column in (("missed", 0), ("total", 1)):
        for got, (one, wanted) in zip(getattr(found, name), zip(times, expected, strict=True), strict=True):
            assert abs(int(got) - wanted[column]) <= _on_the_edge(one, deadline_ms / 1e3), (name, one)


def _on_the_edge(times_s: list[float], pace_s: float) -> int:
    """How many floors may fall to the other side by rounding: of arrivals that are whole paces apart."""
    apart = np.subtract.outer(times_s, times_s) / pace_s
    return int((np.abs(apart - np.round(apart)) < 1e-6).sum()) - len(times_s)


def test_it_decides_what_is_in_time_and_is_told() -> None:
    """A's tokens come each 100 ms, B's two by two, each 200."""
    requests = frame([A, B])
    assert in_time(requests, SLO(deadline_ms=105)).tolist() == [True, True]
    assert in_time(requests, SLO(deadline_ms=95)).tolist() == [False, False]
    assert in_time(requests, SLO(ttft_ms=150, deadline_ms=105)).tolist() == [True, False]
    assert SLO(ttft_ms=150, deadline_ms=105).bounds_text == "TTFT <= 150 ms and a token each 105 ms"
    asked = made([A, B])
    plan = workload(num_requests=2, slo={"deadline_ms": 95.0})
    run = made([A, B], workload=asked.manifest.workload.model_copy(update={"slo": plan.slo}))
    told = summarise(run)
    assert told.slo == "a token each 95 ms"
    assert told.in_time_share == 0
    assert told.deadline_miss_rate == pytest.approx(miss_rate(deadlines(requests, 95)))
    assert summarise(asked).deadline_miss_rate is None
