"""`pabench gate`: a verdict on runs that are on disk."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from pabench.analysis.sides import Measured, by_start, read_runs, refuse_mixture, refuse_unlike, samples_of
from pabench.errors import UsageError
from pabench.gate.decide import REGRESSION, Decision, decide
from pabench.gate.evidence import more_lost, new_conformance_failures, refuse_invalid, sure_failures, zeroed
from pabench.gate.policy import Policy


def judge_folders(baseline: Path, candidate: Path, policy: Policy) -> Decision:
    """Judge the runs below `candidate` against those below `baseline`, once.

    Raises UsageError for runs that are INVALID, or that cannot be compared.
    """
    before, after = read_runs(baseline), read_runs(candidate)
    _refuse_same(before, after)
    broken = sure_failures(after)  # also in a run that is set aside
    before, after, notes = _finished(before, after)
    shares = policy.shares_on_disk(max(_num_starts(before), _num_starts(after)))
    failing, doubts = new_conformance_failures(baseline, candidate)
    failures = [*broken, *failing]
    if not failures:  # they stand, whatever else the runs are worth
        refuse_mixture("the baseline", before)
        refuse_mixture("the candidate", after)
        refuse_unlike(before, after)
        for found in (more_lost(before, after, policy.false_alarm / shares), zeroed(before, after, policy)):
            failures += found[0]
            doubts += found[1]
    if failures:
        return Decision(REGRESSION, failures=tuple(failures), notes=tuple(notes))
    refuse_invalid([*before, *after])
    samples = samples_of(before, after, tuple(policy.metrics), policy.watch.metrics)
    return decide(samples, policy, num_looks=shares, doubts=doubts, notes=[*notes, *_notes(before, after)])


def _num_starts(side: list[Measured]) -> int:
    """How many samples there are of the load that has most: runs of one start are one."""
    return max(len(by_start([run for run in side if run.load == load])) for load in {run.load for run in side})


def _finished(
    before: list[Measured], after: list[Measured]
) -> tuple[list[Measured], list[Measured], list[str]]:
    """Both sides without the pair that was measured last, and a note of that, where a gate was broken off in it: one of
    its runs was interrupted or is not there, and all before it are whole pairs.
    """
    last = max([*before, *after], key=lambda run: run.manifest.started_at)
    pair = [[run for run in side if _turn(run) == _turn(last)] for side in (before, after)]
    rest = [[run for run in side if _turn(run) != _turn(last)] for side in (before, after)]
    turns = [Counter(map(_turn, side)) for side in rest]
    lone, cut = not (pair[0] and pair[1]), any(run.summary.status == "interrupted" for side in pair for run in side)
    if not (lone or cut) or not rest[0] or turns[0] != turns[1] or max(turns[0].values()) > 1:
        return before, after, []
    which = ", ".join(str(run.summary.path) for side in pair for run in side)
    why = "interrupted" if cut else "the other side has no run of its seed"
    return rest[0], rest[1], [f"set aside, the last pair is not whole: {which} ({why})"]


def _turn(run: Measured) -> tuple[str, int]:
    return run.load, run.manifest.seed


def _refuse_same(baseline: list[Measured], candidate: list[Measured]) -> None:
    both = {run.summary.path.resolve() for run in baseline} & {run.summary.path.resolve() for run in candidate}
    if both:
        raise UsageError(f"{len(both)} runs are on both sides, {min(both)} among them: nothing to compare")


def _notes(baseline: list[Measured], candidate: list[Measured]) -> list[str]:
    turns = sorted((run.manifest.started_at, at) for at, side in enumerate((baseline, candidate)) for run in side)
    changes = sum(one[1] != other[1] for one, other in pairwise(turns))
    notes = []
    if changes < min(len(baseline), len(candidate)):
        notes.append("the runs were not interleaved: whatever changed on the machine between the two sides is in the "
                     "ratios, and in no interval; `pabench gate run` takes turns")
    commits = [{run.manifest.versions.get("pabench") for run in side} for side in (baseline, candidate)]
    if commits[0] != commits[1]:
        notes.append("the two sides were measured by different versions of pabench")
    return notes
