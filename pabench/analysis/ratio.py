"""How much more one engine takes than another: the ratio of two sets of runs, with its uncertainty.

The sample is a run, not a request: requests of one run share a process, a cache and a minute of the machine, so they
are no evidence of how runs differ. Logarithms make a ratio a difference, and slow-downs and speed-ups alike.

Means are trimmed by a fifth at either end, and their errors are those of Yuen (1974): a run in which the machine did
something else is one of the extremes, and neither moves the mean nor blows up the error. From five runs on, that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from pabench.errors import UsageError

_TRIMMED = 0.2  # at either end


@dataclass(frozen=True, slots=True)
class LogRatio:
    """ln(other / one) as Student's t has it: trimmed `mean`, its standard error `error`, `freedom` degrees. `count`
    samples.
    """

    mean: float
    error: float
    freedom: float
    count: int

    @property
    def ratio(self) -> float:
        """Of the (trimmed) geometric means."""
        return exp(self.mean)

    def p_above(self, bound: float = 0.0) -> float:
        """How probable so high a ratio is, were the true one at most exp(`bound`). 1 where that cannot be told."""
        return self._tail(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """How probable so low a ratio is, were the true one at least exp(`bound`). 1 where that cannot be told."""
        return self._tail(bound - self.mean)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the ratio, two-sided; (0, inf) where one run a side cannot tell."""
        if self.freedom <= 0:
            return (0.0, inf)
        from scipy.stats import t  # here: it takes long to import, and few commands come so far

        half = float(t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return (exp(self.mean - half), exp(self.mean + half))

    def flipped(self) -> LogRatio:
        """Of one / other."""
        return LogRatio(-self.mean, self.error, self.freedom, self.count)

    def _tail(self, distance: float) -> float:
        if self.freedom <= 0:
            return 1.0
        if self.error == 0:
            return 0.0 if distance > 0 else 1.0
        from scipy.stats import t

        return float(t.sf(distance / self.error, self.freedom))


def paired_ratio(one: Sequence[float], other: Sequence[float]) -> LogRatio:
    """Of runs that belong together, two by two: what both of a pair share, as the minute they ran in, cancels."""
    if len(one) != len(other) or len(one) == 0:
        raise UsageError(f"pairs need as many runs on both sides, and some: got {len(one)} and {len(other)}")
    mean, variance, kept = _trimmed(np.log(other) - np.log(one))
    return LogRatio(mean, sqrt(variance), kept - 1, len(one))


def unpaired_ratio(one: Sequence[float], other: Sequence[float]) -> LogRatio:
    """Of runs without partners: Welch's t as Yuen has it, so the sides need not vary alike."""
    if len(one) == 0 or len(other) == 0:
        raise UsageError(f"a ratio needs runs on both sides: got {len(one)} and {len(other)}")
    first, second = _trimmed(np.log(one)), _trimmed(np.log(other))
    mean, count = second[0] - first[0], min(len(one), len(other))
    if count < 2:
        return LogRatio(mean, inf, 0, count)
    total = first[1] + second[1]
    spread = sum(variance**2 / (kept - 1) for _, variance, kept in (first, second))
    freedom = total**2 / spread if spread > 0 else first[2] + second[2] - 2
    return LogRatio(mean, sqrt(total), freedom, count)


def _trimmed(values: NDArray[np.float64]) -> tuple[float, float, int]:
    """Trimmed mean, its variance from the winsorised values (infinite for one value), and how many were kept."""
    ordered = np.sort(values)
    n, cut = len(ordered), int(_TRIMMED * len(ordered))
    core = ordered[cut : n - cut]
    kept = len(core)
    if kept < 2:
        return float(core.mean()), inf, kept
    winsorised = np.clip(ordered, core[0], core[-1])
    return float(core.mean()), float(np.var(winsorised, ddof=1)) * (n - 1) / (kept * (kept - 1)), kept


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that goes with ratios, trimmed as they are."""
    return exp(_trimmed(np.log(values))[0])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that each may be compared with the error allowed for all of them together (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted
