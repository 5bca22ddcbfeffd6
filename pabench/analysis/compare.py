"""`pabench compare`: the figures of several sets of runs, each as a ratio to the first set's, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from pabench.analysis.ratio import geometric_mean, holm
from pabench.analysis.runs import load_run
from pabench.analysis.sides import Measured, Samples, differences, read_runs, refuse_mixture, samples_of, zeros
from pabench.analysis.within import ratio_interval
from pabench.errors import UsageError

DEFAULT_METRICS = (
    "throughput_tokens_per_s", "request_rate_per_s", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms",
    "itl_p99_ms", "e2e_p50_ms", "effective_utilisation", "prefix_hit_rate",
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of one set beside the first set's. `interval` is of the ratio, 95 %; None where nothing tells it.

    `first` is the trimmed geometric mean over the first set's runs, `value` that times the ratio.

    `basis`: "pairs" or "runs" (how runs differ), or "within" (a single run a side: how its requests differ, which is
    less). `p` is two-sided, corrected by Holm over all figures and sets; None unless runs tell it.
    """

    set_name: str
    load: str
    metric: str
    first: float
    value: float
    ratio: float
    interval: tuple[float, float] | None
    basis: str
    p: float | None
    valid: bool


def compare(
    folders: Sequence[Path], metrics: Sequence[str] = DEFAULT_METRICS, note: Callable[[str], None] = lambda _: None
) -> list[Compared]:
    """Compare the runs below each folder with those below the first. `note` is told why they should not be.

    Raises UsageError when none carried one load, and when a folder holds runs of several engines under one.
    """
    if len(folders) < 2:
        raise UsageError(f"a comparison needs two folders or more: got {len(folders)}")
    first, *others = [read_runs(folder) for folder in folders]
    names = set_names(folders)
    for name, runs in zip(names, (first, *others), strict=True):
        refuse_mixture(name, runs)
    common = {run.load for run in first} & {run.load for run in chain(*others)}
    for difference in differences([run for run in chain(first, *others) if run.load in common]):
        note(difference)
    for name, runs in zip(names[1:], others, strict=True):
        for each in zeros(first, runs, metrics):
            note(f"{name}: {each.text}")
    found = [_compare(name, samples, first, runs)
             for name, runs in zip(names[1:], others, strict=True)
             for samples in samples_of(first, runs, (), metrics)]
    if not found:
        loads = [sorted({run.load for run in runs}) for runs in (first, *others)]
        why = "no figure has a ratio that was measured" if common else "no load was carried"
        raise UsageError(f"{why} by the first and another: {'; '.join(map(', '.join, loads))}")
    told = [at for at, each in enumerate(found) if each.p is not None]
    for at, p in zip(told, holm([found[at].p or 0.0 for at in told]), strict=True):
        found[at] = replace(found[at], p=p)
    return found


def set_names(folders: Sequence[Path]) -> list[str]:
    """What to call each set: the shortest tails of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UsageError("the same folder twice: nothing to compare")


def _compare(name: str, samples: Samples, first: Sequence[Measured], runs: Sequence[Measured]) -> Compared:
    ratio = samples.ratio()
    alone = ratio.freedom <= 0
    sides = [[run for run in side if run.load == samples.load] for side in (first, runs)]
    interval = (ratio_interval(load_run(sides[0][0].summary.path), load_run(sides[1][0].summary.path), samples.metric)
                if alone and len(sides[0]) == len(sides[1]) == 1 else None if alone else ratio.interval())
    p = None if alone else min(1.0, 2 * min(ratio.p_above(), ratio.p_below(0.0)))
    return Compared(
        set_name=name, load=samples.load, metric=samples.metric, first=geometric_mean(samples.baseline),
        value=geometric_mean(samples.baseline) * ratio.ratio, ratio=ratio.ratio, interval=interval,
        basis="within" if alone else "pairs" if samples.paired else "runs", p=p,
        valid=all(run.summary.validity.valid for run in chain(*sides)),
    )
