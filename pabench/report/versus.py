"""How much more of a figure one engine has than another, and whether chance alone may have made the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from pabench.analysis.sides import Measured, Samples, by_start, in_pairs
from pabench.report.groups import RunData
from pabench.report.questions import Question
from pabench.report.text import count, ratio

NEARLY_EQUAL = 1.03  # a smaller factor is not called a difference
# One run a side cannot tell how runs differ. Ratios of two runs of one engine spread by up to 16 % in the records of
# docs/gate.md: what is within twice that may be chance.
ONE_RUN = 1.32


@dataclass(frozen=True, slots=True)
class Versus:
    """`factor`: of one engine to another. `interval`: of it, 95 %, by itself; None unless both have several runs, whose
    numbers `runs` tells. Runs of one start of an engine count as one; `in_starts`: some are.
    """

    factor: float
    interval: tuple[float, float] | None
    runs: tuple[int, int]
    in_starts: bool = False

    @property
    def told(self) -> bool:
        """Whether the difference is more than chance alone makes."""
        if self.interval is not None:
            return not self.interval[0] <= 1 <= self.interval[1]
        return max(self.factor, 1 / self.factor) >= ONE_RUN

    @property
    def alike(self) -> bool:
        """Whether the difference is too small to be called one."""
        return max(self.factor, 1 / self.factor) < NEARLY_EQUAL

    @property
    def basis(self) -> str:
        """What the factor rests on, in words."""
        if self.interval is not None:
            low, high = (ratio(end) for end in self.interval)
            return f"95 %: {low} to {high}, {self._runs}"
        return self._runs

    @property
    def _runs(self) -> str:
        one, other = self.runs
        noun = "start" if self.in_starts else "run"
        if one == other:
            return f"one {noun} each" if one == 1 else f"{count(one)} {noun}s each"
        return f"{count(one)} and {count(other)} {noun}s"


def versus(one: Sequence[RunData], other: Sequence[RunData], question: Question) -> Versus | None:
    """`one` to `other`; None where a side does not tell the figure, or it is 0 in a run, which has no ratio.

    With several runs a side it is as `pabench compare` has it: run by run where both used the same seeds at one load;
    the runs of one start of an engine, which are no independent samples, as their geometric mean.
    """
    sides = [[Measured(run.summary, run.manifest) for run in side] for side in (one, other)]
    if not _all_positive(sides, question):
        return None
    paired = False
    if len({run.load for side in sides for run in side}) == 1:
        sides, paired = in_pairs(*sides)
    first, second = (_one_a_start(side, question) for side in sides)
    starts = (len(first), len(second))
    in_starts = starts != (len(one), len(other))
    if min(starts) < 2:
        return Versus(median(first) / median(second), None, starts, in_starts)
    found = Samples(sides[0][0].load, question.title, second, first, paired and starts[0] == starts[1]).ratio()
    return Versus(found.ratio, found.interval(), starts, in_starts)


def _one_a_start(side: Sequence[Measured], question: Question) -> tuple[float, ...]:
    return tuple(geometric_mean(_values(runs, question)) for runs in by_start(side))


def _values(side: Sequence[Measured], question: Question) -> list[float]:
    return [value for value in (question.value(run.summary) for run in side) if value is not None]


def _all_positive(sides: Sequence[Sequence[Measured]], question: Question) -> bool:
    told = [[value for value in _values(side, question) if value > 0] for side in sides]
    return all(side and len(values) == len(side) for side, values in zip(sides, told, strict=True))
