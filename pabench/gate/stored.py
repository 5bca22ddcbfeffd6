"""`pabench gate`: a verdict on runs that are on disk."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from pabench.analysis.sides import Measured, read_runs, refuse_unlike, samples_of
from pabench.gate.decide import REGRESSION, Decision, decide
from pabench.gate.evidence import more_lost, new_conformance_failures, refuse_invalid, sure_failures
from pabench.gate.policy import Policy


def judge_folders(baseline: Path, candidate: Path, policy: Policy) -> Decision:
    """Judge the runs below `candidate` against those below `baseline`, once.

    Raises UsageError for runs that are INVALID, or that cannot be compared.
    """
    before, after = read_runs(baseline), read_runs(candidate)
    lost, doubts = more_lost(before, after, policy.false_alarm)
    failures = [*sure_failures(after), *lost, *new_conformance_failures(baseline, candidate)]
    if failures:  # they stand, whatever else the runs are worth
        return Decision(REGRESSION, failures=tuple(failures))
    refuse_unlike(before, after)
    refuse_invalid([*before, *after])
    samples = samples_of(before, after, tuple(policy.metrics), policy.watch.metrics)
    return decide(samples, policy, doubts=doubts, notes=_notes(before, after))


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
