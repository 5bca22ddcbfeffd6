"""Ratios of two sets of runs: intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.analysis.ratio import holm, paired_ratio, unpaired_ratio
from pabench.errors import UsageError

positive = st.floats(0.1, 1e4)


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=12))
def test_a_ratio_flipped_is_the_other_way_round(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    forth, back = paired_ratio(one, other), paired_ratio(other, one)
    assert forth.flipped().ratio == pytest.approx(back.ratio)
    assert forth.p_above() == pytest.approx(back.p_below(0.0))
    low, high = forth.interval()
    assert low <= forth.ratio * (1 + 1e-9)
    assert forth.ratio <= high * (1 + 1e-9)


@pytest.mark.parametrize("paired", [True, False])
def test_95_of_100_intervals_hold_the_truth(paired: bool) -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        machine = rng.normal(0, 0.2, 6) if paired else np.zeros(6)  # what both of a pair share cancels
        one, other = (np.exp(machine + rng.normal(mean, 0.03, 6)) for mean in (0.0, np.log(1.05)))
        low, high = (paired_ratio if paired else unpaired_ratio)(one, other).interval()
        inside += low <= 1.05 <= high
    assert 930 <= inside <= 970


def test_a_hiccup_of_the_machine_neither_moves_nor_blurs() -> None:
    rng = np.random.default_rng(0)
    one, other = (np.exp(rng.normal(mean, 0.01, 8)) for mean in (0.0, np.log(1.05)))
    calm = paired_ratio(one, other)
    other[3] *= 3
    shaken = paired_ratio(one, other)
    assert shaken.ratio == pytest.approx(calm.ratio, rel=0.01)
    assert shaken.error < 2 * calm.error


def test_one_run_a_side_tells_nothing() -> None:
    for ratio in (paired_ratio([1.0], [9.0]), unpaired_ratio([1.0], [9.0])):
        assert ratio.ratio == pytest.approx(9.0)
        assert (ratio.p_above(), ratio.p_below(1.0), ratio.interval()) == (1.0, 1.0, (0.0, float("inf")))


def test_without_any_spread_the_sign_decides() -> None:
    assert paired_ratio([1.0, 1.0], [1.1, 1.1]).p_above() == 0.0
    assert paired_ratio([1.1, 1.1], [1.0, 1.0]).p_above() == 1.0


def test_sides_must_fit() -> None:
    with pytest.raises(UsageError, match="got 2 and 1"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(UsageError, match="got 1 and 0"):
        unpaired_ratio([1.0], [])


def test_holm_is_the_published_step_down() -> None:
    # The smallest times 3, the next times 2, never below one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_helps_and_never_exceeds_one(p_values: list[float]) -> None:
    assert all(p <= q <= 1 for p, q in zip(p_values, holm(p_values), strict=True))
