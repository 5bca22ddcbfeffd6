from __future__ import annotations

import numpy as np
import pytest

from pabench.analysis import bootstrap_interval, quantiles
from pabench.analysis.stats import rank_sum_p
from pabench.errors import UsageError


def test_quantiles_are_of_the_raw_samples() -> None:
    found = quantiles([4.0, 1.0, float("nan"), 3.0, 2.0])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.max) == (4, 2.5, 2.5, 4.0)
    assert found.p90 == pytest.approx(3.7)
    assert quantiles([]) is None
    assert quantiles([float("nan")]) is None


def test_a_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.exponential(1.0, 100), np.mean, confidence=0.9, resamples=300, seed=trial)
        inside += low <= 1.0 <= high
    assert 0.82 <= inside / 200 <= 0.96


def test_blocks_widen_the_interval_of_dependent_samples() -> None:
    rng = np.random.default_rng(1)
    walk = np.repeat(rng.normal(size=40), 25)  # runs of 25 alike
    alone = bootstrap_interval(walk, np.mean)
    blocks = bootstrap_interval(walk, np.mean, block=50)
    assert blocks[1] - blocks[0] > 3 * (alone[1] - alone[0])


@pytest.mark.parametrize("bad", [{"block": 0}, {"block": 9}, {"confidence": 1.0}])
def test_a_bootstrap_that_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="a bootstrap needs"):
        bootstrap_interval([1.0, 2.0], np.mean, **bad)


def test_ranks_that_do_not_differ_and_ranks_that_do() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=30), rng.normal(size=30)
    assert rank_sum_p(one, other) > 0.05
    assert rank_sum_p(one, other + 3) < 1e-6
    assert rank_sum_p([1.0] * 30, [1.0] * 30) == 1.0
    with pytest.raises(UsageError, match="both sides: got 2 and 0"):
        rank_sum_p([1.0, 2.0], [])


def test_the_rank_test_by_hand() -> None:
    """Ten all below ten others: U = 0, of mean 50 and variance 175, so z = 49.5 / 13.23. Ties lower the variance."""
    assert rank_sum_p(range(10), range(10, 20)) == pytest.approx(1.83e-4, rel=0.01)
    assert rank_sum_p(range(10, 20), range(10)) == rank_sum_p(range(10), range(10, 20))
    tied = rank_sum_p([0] * 5 + [1] * 5, [1] * 5 + [2] * 5)  # U = 12.5, variance 100/12 (21 - 1230/380) = 148.0
    assert tied == pytest.approx(0.00236, rel=0.01)
