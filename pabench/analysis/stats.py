"""Quantiles and intervals, from raw samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pabench.analysis.summary import Quantiles


def quantiles(samples: ArrayLike) -> Quantiles | None:
    """Quantiles of `samples`, NaN left out; None of none. Linear between neighbours."""
    values = np.asarray(samples, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    p50, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99])
    return Quantiles(len(values), float(values.mean()), float(p50), float(p90), float(p99), float(values.max()))


def block_picks(count: int, block: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """Which of `count` samples each resample takes, runs of `block` neighbours: `[resamples, count]`.

    Runs (moving blocks, Künsch 1989) for samples that depend on those before them, as those of one engine do over time.
    """
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, count - block + 1, size=(resamples, -(-count // block)))
    picks = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :count]
    return np.asarray(picks, dtype=np.int64)


def mean_or_none(samples: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Mean, NaN left out; None of none."""
    found = quantiles(samples)
    return None if found is None else found.mean
