"""What fails a gate whatever the figures, and what may not be judged at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pabench.analysis.sides import Measured
from pabench.conformance.results import FILE_NAME, load_results
from pabench.conformance.verdicts import NOT_CONFORMING
from pabench.errors import EXIT_NOT_CONFORMING, EXIT_OK, UsageError

_LOST = ("error", "timeout")


def refuse_invalid(runs: Iterable[Measured]) -> None:
    """Raise UsageError when a run may not be believed."""
    for run in runs:
        if not run.summary.validity.valid:
            raise UsageError(f"{run.summary.path} is INVALID, and a gate judges valid runs only: "
                             f"{'; '.join(run.summary.validity.reasons)}")


def sure_failures(candidate: Sequence[Measured]) -> list[str]:
    """What fails a gate whatever the figures: wrong tokens, a dead engine."""
    failures = []
    for run in candidate:
        if run.summary.wrong_tokens:
            failures.append(f"{run.summary.path}: {run.summary.wrong_tokens} wrong tokens in "
                            f"{run.summary.outcomes.get('wrong', 0)} answers")
        if run.manifest.status == "failed":
            failures.append(f"{run.summary.path}: the run failed: {run.manifest.failure}")
    return failures


def more_lost(
    baseline: Sequence[Measured], candidate: Sequence[Measured], alarm: float
) -> tuple[list[str], list[str]]:
    """More requests that ended in an error or ran out of time than on the baseline: (failures, doubts).

    A failure where equal engines would lose so many at most as often as `alarm`; else a doubt.
    """
    lost = [sum(run.summary.outcomes.get(name, 0) for run in side for name in _LOST) for side in (baseline, candidate)]
    sent = [sum(sum(run.summary.outcomes.values()) for run in side) for side in (baseline, candidate)]
    if not lost[1] or lost[1] * sent[0] <= lost[0] * sent[1]:
        return [], []
    text = (f"{lost[1]} of {sent[1]} requests ended in an error or ran out of time, {lost[0]} of {sent[0]} on the "
            "baseline")
    p = p_of_losses(lost, sent)
    return ([text], []) if p <= alarm else ([], [f"{text}: so few that it may be chance (p = {p:.2g})"])


def p_of_losses(lost: Sequence[int], sent: Sequence[int]) -> float:
    """How often the candidate of two equal engines loses as many requests as it did, or more, of as many in all.

    `lost`, `sent`: requests of the baseline and of the candidate. Fisher's exact test, one side, with mid-p (Lancaster,
    1961): the plain one errs far less often than it is asked to.
    """
    from scipy.stats import hypergeom  # here: it takes long to import

    drawn = lost[1], sum(sent), sum(lost), sent[1]
    return float(hypergeom.sf(*drawn) + hypergeom.pmf(*drawn) / 2)


def new_conformance_failures(baseline: Path, candidate: Path) -> list[str]:
    """MUST requirements that fail on the candidate and did not on the baseline, by the results of `pabench conform`
    below both folders. Raises UsageError when either's could not be decided.
    """
    asked = [[load_results(path) for path in sorted(folder.rglob(FILE_NAME))] for folder in (baseline, candidate)]
    for name, side in zip(("baseline", "candidate"), asked, strict=True):
        for results in side:
            if results.footer.exit_code not in (EXIT_OK, EXIT_NOT_CONFORMING):
                raise UsageError(f"the {name}'s conformance could not be decided (exit code "
                                 f"{results.footer.exit_code})")
    failing = [{each.requirement: each.outcome.value for results in side for each in results.by_requirement()
                if each.outcome in NOT_CONFORMING and each.level == "MUST"} for side in asked]
    before = "it did not on the baseline" if asked[0] else "the baseline was not asked"
    return [f"conformance: {requirement} is a {outcome}, {before}"
            for requirement, outcome in failing[1].items() if requirement not in failing[0]]
