"""Where a figure stepped: change points in the runs of one engine under one load, in the order of time.

PELT (Killick, Fearnhead and Eckley 2012), as `ruptures` has it, on the logarithm, offers the steps. Each must then be
larger than the largest that a search would find in as much noise without any, corrected for the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

import numpy as np

from pabench.analysis.measures import higher_is_better, measure
from pabench.analysis.ratio import holm, unpaired_ratio
from pabench.analysis.sides import Measured

DEFAULT_METRICS = ("throughput_tokens_per_s", "ttft_p50_ms", "tpot_p50_ms")
MIN_RUNS = 3      # a side, of a step
_ALPHA = 0.005
_SIMULATED = 4000
_HANSEN_95 = 7.35  # of the likelihood ratio of where a step lies
_PENALTY = 4.0    # times the variance and ln(n): above BIC's 2, for noise is not quite independent


@dataclass(frozen=True, slots=True)
class Point:
    """One run in a history. `version`: the engine's, or else the commit of pabench's checkout."""

    started_at: str
    version: str
    value: float
    path: str


@dataclass(frozen=True, slots=True)
class Step:
    """Between two runs the figure stepped: by `ratio`, new level / old level. Most likely just between `before` and
    `after`, and in 95 of 100 between `first` and `last`.
    """

    before: Point
    after: Point
    first: Point
    last: Point
    ratio: float
    interval: tuple[float, float]
    worse: bool

    @property
    def text(self) -> str:
        """In words, with the range of versions that holds the cause."""
        low, high = self.interval
        first, last = self.first, self.last
        where = (f"between {first.version} and {last.version}" if first.version != last.version
                 else f"within {last.version}: something else changed")
        if first.version != last.version and (first, last) != (self.before, self.after):
            where += f", most likely at {self.after.version}"
        return (f"{'worse' if self.worse else 'better'} by {self.ratio - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%}), "
                f"{where} ({first.started_at[:19]} to {last.started_at[:19]})")


@dataclass(frozen=True, slots=True)
class History:
    """One figure of one engine under one load."""

    label: str
    load: str
    metric: str
    points: tuple[Point, ...]
    steps: tuple[Step, ...]


def histories(runs: Sequence[Measured], metrics: Sequence[str]) -> list[History]:
    """A history of each figure, by engine, model, load and machine. INVALID runs are left out."""
    models: dict[str, set[str]] = {}  # by label, which by default is only the dialect
    for run in runs:
        models.setdefault(run.manifest.label, set()).add(run.manifest.engine.model)
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for run in sorted(runs, key=lambda run: run.manifest.started_at):
        if run.summary.validity.valid:
            host = run.manifest.host
            engine = run.manifest.engine
            label = run.manifest.label + (f", {engine.model}" if len(models[run.manifest.label]) > 1 else "")
            of = (label, run.load, engine.model, host.cpu, str(host.cores), run.manifest.workload.model_dump_json())
            groups.setdefault(of, []).append(run)
    found = []
    for (label, load, *_), members in groups.items():
        for name in metrics:
            points = [_point(run, value) for run in members if (value := measure(run.summary, name)) is not None]
            if points:
                found.append(History(label, load, name, tuple(points), find_steps(points, name)))
    return found


def find_steps(points: Sequence[Point], metric: str) -> tuple[Step, ...]:
    """The steps in `points`, which are in the order of time; fewer than two times MIN_RUNS have none."""
    if len(points) < 2 * MIN_RUNS:
        return ()
    import ruptures  # here: it takes long to import

    figures = _above_zero([point.value for point in points])
    values = np.log(figures)
    noise = _noise(values) or 1e-9
    ends = ruptures.Pelt(model="l2", min_size=MIN_RUNS, jump=1).fit(values / noise).predict(
        pen=_PENALTY * log(len(values)))
    edges = [0, *ends]
    offered = [(start, middle, end) for (start, middle), (_, end) in pairwise(pairwise(edges))]
    ratios = [unpaired_ratio(figures[start:middle], figures[middle:end]) for start, middle, end in offered]
    spans = [_plausible(values[start:end], middle - start) for start, middle, end in offered]
    p_values = holm([_p_of_step(values[start:end], middle - start) for start, middle, end in offered])
    return tuple(
        Step(points[middle - 1], points[middle], points[start + low - 1], points[start + high], ratio.ratio,
             ratio.interval(), worse=(ratio.ratio < 1) == higher_is_better(metric))
        for (start, middle, _), (low, high), ratio, p in zip(offered, spans, ratios, p_values, strict=True)
        if p < _ALPHA
    )


def _above_zero(values: Sequence[float]) -> list[float]:
    """`values` for logarithms: 0 counts as a thousandth of the smallest other, so that a figure that vanished is a
    step too.
    """
    smallest = min((value for value in values if value > 0), default=1.0)
    return [value if value > 0 else smallest / 1000 for value in values]


def _p_of_step(values: np.ndarray, at: int) -> float:
    """How often the largest step in as many values of normal noise is as large as the one at `at`."""
    found = _t_of_splits(values[None, :])[0, at - MIN_RUNS]
    noise = np.random.default_rng(0).normal(size=(_SIMULATED, len(values)))
    return float((1 + np.count_nonzero(_t_of_splits(noise).max(axis=1) >= found)) / (1 + _SIMULATED))


def _plausible(values: np.ndarray, at: int) -> tuple[int, int]:
    """The first and the last split that may be the true one: whose residual sum of squares is not larger than that of
    the split `at`, which was found, by more than chance allows (Hansen 2000, 95 %).
    """
    within = _splits(values[None, :])[1][0]
    near = np.flatnonzero(within <= within[at - MIN_RUNS] * (1 + _HANSEN_95 / (len(values) - 2))) + MIN_RUNS
    return int(near[0]), int(near[-1])


def _t_of_splits(rows: np.ndarray) -> np.ndarray:
    """|t| of each split of each row, with at least MIN_RUNS values a side: `[rows, splits]`."""
    n = rows.shape[1]
    left = np.arange(MIN_RUNS, n - MIN_RUNS + 1)
    step, within = _splits(rows)
    variance = np.maximum(within, 1e-12) / (n - 2) * (1 / left + 1 / (n - left))
    return np.asarray(np.abs(step) / np.sqrt(variance))


def _splits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each split of each row the step between its means, and the sum of squares around them: `[rows, splits]`."""
    n = rows.shape[1]
    left = np.arange(MIN_RUNS, n - MIN_RUNS + 1)
    sums, squares = np.cumsum(rows, axis=1), np.cumsum(rows**2, axis=1)
    first, total = sums[:, left - 1], sums[:, -1:]
    means = first / left, (total - first) / (n - left)
    within = squares[:, -1:] - left * means[0] ** 2 - (n - left) * means[1] ** 2
    return means[0] - means[1], np.maximum(within, 0.0)


def _noise(values: np.ndarray) -> float:
    """Standard deviation from neighbours' differences, which a step hardly moves: their median, for a normal law."""
    return float(np.median(np.abs(np.diff(values)))) / 0.9539


def _point(run: Measured, value: float) -> Point:
    version = run.manifest.engine.version or (run.manifest.git_commit or "unknown version")[:12]
    return Point(run.manifest.started_at, version, value, str(run.summary.path))
