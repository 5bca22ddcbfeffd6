"""Quantiles and intervals, from raw samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pabench.analysis.summary import Quantiles
from pabench.errors import UsageError


def quantiles(samples: ArrayLike) -> Quantiles | None:
    """Quantiles of `samples`, NaN left out; None of none. Linear between neighbours."""
    values = np.asarray(samples, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99])
    return Quantiles(len(values), float(values.mean()), float(p50), float(p90), float(p99), float(values.max()))


def bootstrap_interval(
    samples: ArrayLike, statistic: Callable[[NDArray[np.float64]], float], *, confidence: float = 0.95,
    resamples: int = 2000, seed: int = 0, block: int = 1,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over `samples`.

    `block` > 1 resamples runs of that many neighbours (moving blocks, Künsch 1989), for samples that depend on those
    before them, as those of one engine do over time.
    """
    values = np.asarray(samples, dtype=np.float64)
    if len(values) == 0 or not 0 < confidence < 1 or not 1 <= block <= len(values):
        raise UsageError(f"a bootstrap needs samples, a confidence inside 0..1 and a block of 1 to as many "
                         f"samples: got {len(values)} samples, confidence {confidence}, block {block}")
    estimates = [statistic(values[pick]) for pick in block_picks(len(values), block, resamples, seed)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def block_picks(count: int, block: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """Which of `count` samples each resample takes, runs of `block` neighbours: `[resamples, count]`."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, count - block + 1, size=(resamples, -(-count // block)))
    picks = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :count]
    return np.asarray(picks, dtype=np.int64)


def mean_or_none(samples: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Mean, NaN left out; None of none."""
    found = quantiles(samples)
    return None if found is None else found.mean
