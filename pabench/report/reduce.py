"""Many samples to few points, for drawing alone; numbers in tables never come from here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_QUANTILES = 240
MAX_SERIES_POINTS = 240


def quantile_curve(samples: Floats, max_points: int = MAX_QUANTILES) -> tuple[Floats, Floats, Floats]:
    """The empirical distribution with its tail stretched: (1 / (1 - q), q, value), each [points].

    q is the share of samples at or below: i / n for the i-th of n in ascending order, from 1. The highest has q = 1,
    which no stretched axis reaches: it is drawn at 2 n, twice as far as the one before it. Up to `max_points` samples
    each gives one point; above that, ranks evenly spaced on the stretched (logarithmic) axis are kept, which keeps the
    lowest and the highest sample. Values are samples, nothing is interpolated.
    """
    samples = np.asarray(samples, dtype=np.float64)
    ordered = np.sort(samples[np.isfinite(samples)])
    n = len(ordered)
    if n == 0:
        return ordered, ordered, ordered
    from_top = np.arange(1, n + 1)
    if n > max_points:
        # Evenly spaced in the logarithm, from the highest, 1, to the lowest, n.
        from_top = np.unique(np.rint(np.geomspace(1, n, max_points)).astype(np.int64))
    above = from_top[::-1] - 1.0  # so many samples are higher
    return n / np.maximum(above, 0.5), 1 - above / n, ordered[n - from_top[::-1]]


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
