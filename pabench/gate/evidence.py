"""From two sets of run folders to what a gate judges: like with like, and what fails it whatever the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pabench.analysis import RunSummary, find_runs, load_run, summarise
from pabench.analysis.measures import measure
from pabench.conformance.results import FILE_NAME, load_results
from pabench.conformance.verdicts import NOT_CONFORMING
from pabench.errors import EXIT_NOT_CONFORMING, EXIT_OK, UsageError
from pabench.gate.decide import Samples
from pabench.gate.policy import Policy
from pabench.load.manifest import Manifest

_LOST = ("error", "timeout")


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


def refuse_invalid(runs: Iterable[Measured]) -> None:
    """Raise UsageError when a run may not be believed."""
    for run in runs:
        if not run.summary.validity.valid:
            raise UsageError(f"{run.summary.path} is INVALID, and a gate judges valid runs only: "
                             f"{'; '.join(run.summary.validity.reasons)}")


def refuse_unlike(baseline: Sequence[Measured], candidate: Sequence[Measured]) -> None:
    """Raise UsageError unless both sides carried the same loads on machines of one kind."""
    loads = [{run.load for run in side} for side in (baseline, candidate)]
    if loads[0] != loads[1]:
        raise UsageError("baseline and candidate carried different loads: "
                         f"{'; '.join(sorted(loads[0]))} against {'; '.join(sorted(loads[1]))}")
    for load in loads[0]:
        kinds = {run.manifest.workload.model_dump_json() for run in (*baseline, *candidate) if run.load == load}
        if len(kinds) > 1:
            raise UsageError(f"the workload {load!r} is not the same in all runs: they differ in more than name")
    digests: dict[tuple[str, int], set[str]] = {}
    for run in (*baseline, *candidate):
        digests.setdefault((run.load, run.manifest.seed), set()).add(run.manifest.schedule_digest)
    for (load, seed), found in digests.items():
        if len(found) > 1:
            raise UsageError(f"runs of {load!r} with seed {seed} sent different requests (engines of different context "
                             "or abilities?): they cannot be compared")
    hosts = {f"{run.manifest.host.cpu}, {run.manifest.host.cores} cores" for run in (*baseline, *candidate)}
    if len(hosts) > 1:
        raise UsageError(f"the runs were measured from different machines ({'; '.join(sorted(hosts))}): measure both "
                         "on one")


def samples_of(baseline: Sequence[Measured], candidate: Sequence[Measured], policy: Policy) -> list[Samples]:
    """Each figure of the policy that both sides have, by load; run by run where both sides used each seed once.

    Raises UsageError when a figure that decides is missing on one side only, or in some runs.
    """
    found = []
    for load in dict.fromkeys(run.load for run in baseline):
        sides = [[run for run in side if run.load == load] for side in (baseline, candidate)]
        sides, paired = _in_pairs(sides[0], sides[1])
        for name in (*policy.metrics, *policy.watch.metrics):
            values = [[measure(run.summary, name) for run in side] for side in sides]
            known = [[value for value in side if value is not None] for side in values]
            if known[0] and known[1] and known == values:
                found.append(Samples(load, name, tuple(known[0]), tuple(known[1]), paired))
            elif (known[0] or known[1]) and name in policy.metrics:
                raise UsageError(f"{name} is known for {len(known[0])} of {len(values[0])} baseline runs and for "
                                 f"{len(known[1])} of {len(values[1])} candidate runs of {load!r}: nothing to compare")
    if not any(each.metric in policy.metrics for each in found):
        raise UsageError(f"no run has a figure that the policy decides by: {', '.join(policy.metrics)}")
    return found


def _in_pairs(one: list[Measured], other: list[Measured]) -> tuple[list[list[Measured]], bool]:
    """Both sides by seed, and whether they are pairs: both used the same seeds, each once."""
    seeds = [Counter(run.manifest.seed for run in side) for side in (one, other)]
    if seeds[0] != seeds[1] or max(seeds[0].values()) > 1:
        return [one, other], False
    return [sorted(side, key=lambda run: run.manifest.seed) for side in (one, other)], True


def sure_failures(baseline: Sequence[Measured], candidate: Sequence[Measured]) -> list[str]:
    """What fails a gate whatever the figures: wrong tokens, a dead engine, more lost requests than the baseline's."""
    failures = []
    for run in candidate:
        if run.summary.wrong_tokens:
            failures.append(f"{run.summary.path}: {run.summary.wrong_tokens} wrong tokens in "
                            f"{run.summary.outcomes.get('wrong', 0)} answers")
        if run.manifest.status == "failed":
            failures.append(f"{run.summary.path}: the run failed: {run.manifest.failure}")
    lost = [sum(run.summary.outcomes.get(name, 0) for run in side for name in _LOST) for side in (baseline, candidate)]
    sent = [sum(sum(run.summary.outcomes.values()) for run in side) for side in (baseline, candidate)]
    if lost[1] and lost[1] * sent[0] > lost[0] * sent[1]:
        failures.append(f"{lost[1]} of {sent[1]} requests ended in an error or ran out of time, {lost[0]} of {sent[0]} "
                        "on the baseline")
    return failures


def new_conformance_failures(baseline: Path, candidate: Path) -> list[str]:
    """MUST requirements that fail on the candidate and did not on the baseline, by the results of `pabench conform`
    below both folders. Raises UsageError when the candidate's could not be run.
    """
    asked = [[load_results(path) for path in sorted(folder.rglob(FILE_NAME))] for folder in (baseline, candidate)]
    for results in asked[1]:
        if results.footer.exit_code not in (EXIT_OK, EXIT_NOT_CONFORMING):
            raise UsageError(f"the candidate's conformance could not be decided (exit code {results.footer.exit_code})")
    failing = [{each.requirement: each.outcome.value for results in side for each in results.by_requirement()
                if each.outcome in NOT_CONFORMING and each.level == "MUST"} for side in asked]
    before = "it did not on the baseline" if asked[0] else "the baseline was not asked"
    return [f"conformance: {requirement} is a {outcome}, {before}"
            for requirement, outcome in failing[1].items() if requirement not in failing[0]]
