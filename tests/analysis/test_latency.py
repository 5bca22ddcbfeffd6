"""Gaps of samples that need no sorting are those of samples that do; how sure a run is of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.analysis import latency
from pabench.analysis.latency import itl_ms, tpot_ms
from pabench.analysis.runs import Run
from pabench.analysis.within import interval, ratio_interval


def answers(times_s: list[list[float]], n: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"token_times_s": [np.array(row) for row in times_s],
                         "token_choices": [np.zeros(len(row), dtype=np.int64) for row in times_s], "n": n})


@given(st.lists(st.lists(st.floats(0, 100), max_size=8).map(sorted), max_size=6))
def test_one_sample_a_request_is_the_same_without_sorting(times_s: list[list[float]]) -> None:
    for figure in (itl_ms, tpot_ms):
        assert np.array_equal(figure(answers(times_s)), figure(answers(times_s, n=2)))


@given(st.lists(st.lists(st.floats(0, 100), max_size=8).map(sorted), max_size=6))
def test_a_long_run_is_the_same_in_slices(times_s: list[list[float]]) -> None:
    for figure in (itl_ms, tpot_ms):
        with mock.patch.object(latency, "SLICE", 2):
            in_slices = figure(answers(times_s))
        assert np.array_equal(in_slices, figure(answers(times_s)))


def test_stamps_that_changed_places_are_sorted() -> None:
    assert itl_ms(answers([[1.0, 3.0, 2.0], [0.5]])) == pytest.approx([1000, 1000])


def run_of(gaps_ms: np.ndarray) -> Run:
    """A run whose answers have these gaps: `[requests, gaps]`."""
    times_s = np.cumsum(np.pad(gaps_ms, ((0, 0), (1, 0)), constant_values=50.0), axis=1) / 1e3
    frame = answers(list(times_s)).assign(index=range(len(times_s)), outcome="ok")
    return Run(Path(), None, frame, pd.DataFrame())  # type: ignore[arg-type]  # nothing else of it is asked


@pytest.mark.parametrize(("times_s", "share"), [
    ([[1.0, 2.0, 3.0]], 0.0), ([[1.0, 1.0, 2.0, 3.0]], 1 / 3), ([[1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 4.0]], 5 / 6),
    ([[1.0, 1.0], [1.0, 2.0]], 0.5), ([[1.0], []], None), ([], None),
])
def test_which_gaps_are_parts_of_a_chunks(times_s: list[list[float]], share: float | None) -> None:
    for size in (1, 50_000):
        with mock.patch.object(latency, "SLICE", size):
            assert latency.spread_share(answers(times_s)) == (None if share is None else pytest.approx(share))


def test_a_runs_own_interval_holds_its_figure_and_narrows_with_requests() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for count in (50, 800):
        run = run_of(rng.exponential(10, (count, 1)) * np.ones((count, 16)))
        low, high = interval(run, "itl_mean_ms") or (0.0, 0.0)
        assert low < itl_ms(run.requests).mean() < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]
    assert interval(run_of(np.ones((5, 4))), "itl_mean_ms") is None
    assert interval(run, "preemptions") is None


def test_what_a_request_makes_slow_is_one_piece_of_evidence() -> None:
    """Two equal engines: 48 answers, each slower or quicker than the others as a whole."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(12):
        one, other = (run_of(10 * np.exp(rng.normal(0, 0.2, (48, 1))) + rng.normal(0, 1, (48, 64))) for _ in range(2))
        low, high = ratio_interval(one, other, "itl_mean_ms") or (0.0, 0.0)
        held += low <= 1 <= high
    assert held >= 10


def test_an_interval_of_many_gaps_holds_their_ratio() -> None:
    """The first gap of each of 1000 answers is longer: a stride through all gaps would meet it five times as often."""
    one, other = (run_of(np.tile([first, *[10.0] * 99], (1000, 1))) for first in (20.0, 40.0))
    assert ratio_interval(one, other, "itl_mean_ms") == pytest.approx((10.3 / 10.1,) * 2)
    low, high = ratio_interval(one, other, "itl_p99_ms") or (0.0, 0.0)
    p99 = [np.quantile(itl_ms(run.requests), 0.99) for run in (one, other)]
    assert low - 1e-6 <= p99[1] / p99[0] <= high + 1e-6


def test_a_few_very_long_answers_have_an_interval() -> None:
    rng = np.random.default_rng(2)
    one, other = (run_of(rng.normal(10, 1, (20, 6000))) for _ in range(2))
    assert ratio_interval(one, other, "itl_p50_ms") is not None


def closed_loop(itl_s: float, seed: int) -> Run:
    """One user, who asks again at once; 50 tokens an answer, for a minute."""
    gaps = np.random.default_rng(seed).uniform(0.9 * itl_s, 1.1 * itl_s, (int(60 / itl_s / 50), 50))
    times_s = np.cumsum(gaps).reshape(gaps.shape)
    frame = answers(list(times_s)).assign(index=range(len(gaps)), outcome="ok", sent_s=times_s[:, 0] - itl_s,
                                          last_s=times_s[:, -1], end_s=times_s[:, -1])
    manifest = SimpleNamespace(window_s=(5.0, 55.0), duration_s=60.0)
    return Run(Path(), manifest, frame, pd.DataFrame())  # type: ignore[arg-type]  # nothing else of it is asked


def test_an_interval_of_throughput_holds_the_ratio_of_engines_of_different_speed() -> None:
    """An answer takes the slower one twice as long, and so does each bin of its tokens."""
    low, high = ratio_interval(closed_loop(0.02, 1), closed_loop(0.04, 2), "throughput_tokens_per_s") or (0.0, 0.0)
    assert low <= 0.5 <= high
    assert high - low < 0.05
