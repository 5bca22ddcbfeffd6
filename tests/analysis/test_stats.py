from __future__ import annotations

import numpy as np
import pytest

from pabench.analysis import quantiles
from pabench.analysis.stats import block_picks


def test_quantiles_are_of_the_raw_samples() -> None:
    found = quantiles([4.0, 1.0, float("nan"), 3.0, 2.0])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.max) == (4, 2.5, 2.5, 4.0)
    assert found.p90 == pytest.approx(3.7)
    assert quantiles([]) is None
    assert quantiles([float("nan")]) is None


def means(samples: np.ndarray, *, block: int = 1, seed: int = 0) -> np.ndarray:
    """Of 300 resamples."""
    return np.asarray(samples[block_picks(len(samples), block, 300, seed)].mean(axis=1))


def test_resamples_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = np.quantile(means(rng.exponential(1.0, 100), seed=trial), [0.05, 0.95])
        inside += low <= 1.0 <= high
    assert 0.82 <= inside / 200 <= 0.96


def test_blocks_widen_the_interval_of_dependent_samples() -> None:
    rng = np.random.default_rng(1)
    walk = np.repeat(rng.normal(size=40), 25)  # runs of 25 alike
    assert np.ptp(means(walk, block=50)) > 3 * np.ptp(means(walk))
