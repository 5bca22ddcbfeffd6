"""Many samples to few points, for drawing alone; numbers in tables never come from here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_QUANTILES = 240
MAX_SERIES_POINTS = 240


def quantile_curve(samples: Floats, max_points: int = MAX_QUANTILES) -> tuple[Floats, Floats]:
    """The empirical distribution with its tail stretched: (1 / (1 - q), value), both [points].

    Sample i of n in ascending order stands at q = i / n, so the highest sits at 1 / (1 - q) = n. Up to `max_points`
    samples each gives one point; above that, ranks evenly spaced on the stretched (logarithmic) axis are kept, which
    keeps the lowest and the highest sample. Values are samples, nothing is interpolated.
    """
    samples = np.asarray(samples, dtype=np.float64)
    ordered = np.sort(samples[np.isfinite(samples)])
    n = len(ordered)
    if n == 0:
        return ordered, ordered
    ranks = np.arange(n)
    if n > max_points:
        # Rank r stands at n / (n - r): n - r evenly spaced in its logarithm, from n down to 1.
        from_top = np.unique(np.rint(np.geomspace(1, n, max_points)).astype(np.int64))
        ranks = np.sort(n - from_top)
    return n / (n - ranks), ordered[ranks]


def low_and_high(times: Floats, values: Floats, max_points: int = MAX_SERIES_POINTS) -> tuple[Floats, Floats]:
    """A time series [samples] with at most `max_points` points: lowest and highest sample of each equal share of it.

    Peaks and dips survive, unlike with means. A series that is short enough comes back as it is. Not-a-number is a
    sample that the engine did not give and is left out.
    """
    known = ~np.isnan(values)
    times, values = times[known], values[known]
    if len(times) <= max_points:
        return times, values
    keep: list[int] = []
    for share in np.array_split(np.arange(len(times)), max_points // 2):
        lowest, highest = share[np.argmin(values[share])], share[np.argmax(values[share])]
        keep.extend(sorted({int(lowest), int(highest)}))
    return times[keep], values[keep]


def rounded(values: Floats, digits: int = 5) -> list[float | None]:
    """For JSON: `digits` significant digits, None for what is not a finite number."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]
