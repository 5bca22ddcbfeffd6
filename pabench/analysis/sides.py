"""Sets of runs side by side: like with like, run by run where they belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from pabench.analysis.measures import measure
from pabench.analysis.ratio import LogRatio, paired_ratio, unpaired_ratio
from pabench.analysis.runs import find_runs, load_run
from pabench.analysis.summarise import summarise
from pabench.analysis.summary import RunSummary
from pabench.engines.cleaning import WHOLE, clean
from pabench.errors import UsageError
from pabench.load.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: its figures and its manifest."""

    summary: RunSummary
    manifest: Manifest

    @property
    def load(self) -> str:
        """Workload and load: runs are compared under the same one only."""
        return f"{self.summary.workload}, {self.summary.load}"


def read_run(folder: Path) -> Measured:
    """One run folder. Raises UsageError when it is none."""
    run = load_run(folder)
    return Measured(summarise(run), run.manifest)


def read_runs(folder: Path) -> list[Measured]:
    """All runs in `folder` and below, by the time of their start. Raises UsageError when there are none."""
    runs = sorted((read_run(path) for path in find_runs(folder)), key=lambda run: run.manifest.started_at)
    if not runs:
        raise UsageError(f"{folder} holds no run: expected folders that `pabench run` or `pabench gate run` wrote")
    return runs


def read_all(folders: Sequence[Path]) -> tuple[list[Measured], list[str]]:
    """All runs below `folders` by the time of their start, and what could not be read, and why. Raises UsageError when
    there is no run at all.
    """
    runs, problems = [], []
    for path in dict.fromkeys(path for folder in folders for path in find_runs(folder)):
        try:
            runs.append(read_run(path))
        except UsageError as error:
            problems.append(str(error))
    if not runs:
        why = f": {'; '.join(problems)}" if problems else ""
        raise UsageError(f"no run below {', '.join(map(str, folders))}{why}")
    return sorted(runs, key=lambda run: run.manifest.started_at), problems


@dataclass(frozen=True, slots=True)
class Samples:
    """One figure in the runs of both sides, in its own unit. `paired`: run by run."""

    load: str
    metric: str
    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    paired: bool

    def ratio(self) -> LogRatio:
        """candidate / baseline."""
        return (paired_ratio if self.paired else unpaired_ratio)(self.baseline, self.candidate)


def refuse_unlike(baseline: Sequence[Measured], candidate: Sequence[Measured]) -> None:
    """Raise UsageError unless both sides carried the same loads on machines of one kind."""
    loads = [{run.load for run in side} for side in (baseline, candidate)]
    if loads[0] != loads[1]:
        raise UsageError("baseline and candidate carried different loads: "
                         f"{'; '.join(sorted(loads[0]))} against {'; '.join(sorted(loads[1]))}")
    for difference in differences([*baseline, *candidate]):
        raise UsageError(difference)


def refuse_mixture(name: str, runs: Sequence[Measured]) -> None:
    """Raise UsageError where figures of several engines, or of several versions of one, would become one."""
    for load in dict.fromkeys(run.load for run in runs):
        engines = sorted({_engine(run) for run in runs if run.load == load})
        if len(engines) > 1:
            raise UsageError(f"{name} holds runs of several engines under {load!r} ({', '.join(engines)}): "
                             "give a folder of one engine each")


def _engine(run: Measured) -> str:
    """What ran, for a person and to tell it from another; not its number of blocks, which one engine finds anew at
    each start.
    """
    engine = run.manifest.engine
    kv = "" if engine.kv is None else f", blocks of {engine.kv.block_size} tokens"
    return clean(f"{run.manifest.label} {engine.version or ''}".strip() + f", model {engine.model}{kv}", WHOLE)


def _digest(run: Measured) -> str:
    return run.manifest.schedule_digest


def differences(runs: Sequence[Measured], sent: Callable[[Measured], str | bytes] = _digest) -> Iterator[str]:
    """Why runs of one load should not be compared, each in a sentence. `sent`: what two runs of one seed have in common
    that sent the same requests; to the byte unless it is given.
    """
    for load in sorted({run.load for run in runs}):
        if len({run.manifest.workload.model_dump_json() for run in runs if run.load == load}) > 1:
            yield f"the workload {load!r} is not the same in all runs: they differ in more than name"
    digests: dict[tuple[str, int], set[str | bytes]] = {}
    for run in runs:
        digests.setdefault((run.load, run.manifest.seed), set()).add(sent(run))
    unlike = [f"{load!r} with seed {seed}" for (load, seed), found in digests.items() if len(found) > 1]
    if unlike:
        yield (f"runs of {', '.join(unlike)} sent different requests (engines of different context or abilities?): "
               "they cannot be compared")
    hosts = {f"{run.manifest.host.cpu}, {run.manifest.host.cores} cores" for run in runs}
    if len(hosts) > 1:
        yield (f"the runs were measured from different machines ({'; '.join(sorted(hosts))}): measure both on one")


def samples_of(
    baseline: Sequence[Measured], candidate: Sequence[Measured], needed: Sequence[str], shown: Sequence[str] = ()
) -> list[Samples]:
    """Each of the figures that both sides have, by load; run by run where both sides used each seed once. Runs of one
    start of an engine are one sample, their geometric mean.

    Loads that only one side carried are left out, and figures that are 0 in a run, which have no ratio (`zeros`).
    Raises UsageError when a figure of `needed` is missing on one side only, or in some runs.
    """
    found = []
    for load, *runs in _by_load(baseline, candidate):
        sides, paired = in_pairs(*runs)
        for name in (*needed, *shown):
            values = [[measure(run.summary, name) for run in side] for side in sides]
            known = [[value for value in side if value is not None] for side in values]
            if known[0] and known[1] and known == values:
                if 0 not in (*known[0], *known[1]):
                    before, after = (_one_a_start(side, name) for side in sides)
                    found.append(Samples(load, name, before, after, paired and len(before) == len(after)))
            elif (known[0] or known[1]) and name in needed:
                raise UsageError(f"{name} is known for {len(known[0])} of {len(values[0])} baseline runs and for "
                                 f"{len(known[1])} of {len(values[1])} candidate runs of {load!r}: nothing to compare")
    return found


def by_start(runs: Sequence[Measured]) -> list[list[Measured]]:
    """The runs of each start of an engine; one whose start is not told is alone."""
    starts: dict[str, list[Measured]] = {}
    for at, run in enumerate(runs):
        starts.setdefault(run.manifest.engine_started_at or str(at), []).append(run)
    return list(starts.values())


def _one_a_start(runs: Sequence[Measured], name: str) -> tuple[float, ...]:
    """A figure that all of `runs` have, above 0, in its own unit: the geometric mean of each start."""
    return tuple(mean for each in by_start(runs) if (mean := mean_of_start(each, name)) is not None)


def mean_of_start(runs: Sequence[Measured], name: str) -> float | None:
    """The geometric mean of a figure in the runs of one start, in its own unit; None where a run lacks it, or has 0."""
    known = [value for run in runs if (value := measure(run.summary, name))]
    return geometric_mean(known) if len(known) == len(runs) else None


@dataclass(frozen=True, slots=True)
class Zeros:
    """A figure that is 0 in some runs: their number, and that of all, on each side."""

    load: str
    metric: str
    baseline: tuple[int, int]
    candidate: tuple[int, int]

    @property
    def vanished(self) -> bool:
        """It is 0 in all of the candidate's runs, and in none of the baseline's."""
        return self.baseline[0] == 0 and self.candidate[0] == self.candidate[1]

    @property
    def text(self) -> str:
        """For a person."""
        return (f"{self.metric} is 0 in {self.candidate[0]} of {self.candidate[1]} runs of {self.load!r}, and in "
                f"{self.baseline[0]} of {self.baseline[1]} of the baseline: there is no ratio")


def zeros(baseline: Sequence[Measured], candidate: Sequence[Measured], names: Sequence[str]) -> list[Zeros]:
    """The figures that are 0 in some runs of a load that both sides carried, and not in all."""
    found = []
    for load, *sides in _by_load(baseline, candidate):
        for name in names:
            counts = [(sum(measure(run.summary, name) == 0 for run in side), len(side)) for side in sides]
            if counts[0][0] + counts[1][0] not in (0, counts[0][1] + counts[1][1]):
                found.append(Zeros(load, name, counts[0], counts[1]))
    return found


def _by_load(
    baseline: Sequence[Measured], candidate: Sequence[Measured]
) -> Iterator[tuple[str, list[Measured], list[Measured]]]:
    """Each load that both sides carried, and their runs of it."""
    for load in dict.fromkeys(run.load for run in baseline):
        sides = [[run for run in side if run.load == load] for side in (baseline, candidate)]
        if sides[1]:
            yield load, sides[0], sides[1]


def in_pairs(one: list[Measured], other: list[Measured]) -> tuple[list[list[Measured]], bool]:
    """Both sides by seed, and whether they are pairs: both used the same seeds, each once."""
    seeds = [Counter(run.manifest.seed for run in side) for side in (one, other)]
    if seeds[0] != seeds[1] or max(seeds[0].values()) > 1:
        return [one, other], False
    return [sorted(side, key=lambda run: run.manifest.seed) for side in (one, other)], True
