from __future__ import annotations

import numpy as np
import pytest

from pabench.analysis import bootstrap_interval, quantiles
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
