"""What fails a gate whatever the figures, and what may not be judged at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pabench.analysis.measures import higher_is_better
from pabench.analysis.sides import Measured, by_start, zeros
from pabench.conformance.results import FILE_NAME, load_results
from pabench.conformance.verdicts import NOT_CONFORMING, Outcome, by_requirement
from pabench.engines.cleaning import WHOLE, clean
from pabench.errors import EXIT_NOT_CONFORMING, EXIT_OK, UsageError
from pabench.gate.policy import Policy

CONFORMANCE = "conformance: "  # begins what is said of it
_LOST = ("error", "timeout")
_DEALS = 20_000     # of runs to two sides, at most
_EQUAL = 1e-9       # of shares
FloatArray = NDArray[np.float64]


def refuse_invalid(runs: Iterable[Measured]) -> None:
    """Raise UsageError when a run may not be believed."""
    for run in runs:
        if not run.summary.validity.valid:
            raise UsageError(f"{run.summary.path} is INVALID, and a gate judges valid runs only: "
                             f"{clean('; '.join(run.summary.validity.reasons), WHOLE)}")


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

    A failure where equal engines would lose so many at most as often as `alarm`, by requests and by runs: those of one
    run are lost together when something happens to it, and so are those of one start, which count as one run. Most
    requests lost are a failure in any number of runs. Where there are too few runs to tell so rare a thing, each of the
    candidate's (two at least) has to be worse than all of the baseline's, and to lose too many also without the worst.
    Else a doubt. What the client's own machine lost is nobody's.
    """
    sides = [[(sum(map(_lost, runs)), sum(map(_sent, runs))) for runs in by_start(side)]
             for side in (baseline, candidate)]
    before, after = ([sum(counts) for counts in zip(*side, strict=True)] for side in sides)
    if not after[0] or after[0] * before[1] <= before[0] * after[1]:
        return [], []
    text = (f"{after[0]} of {after[1]} requests ended in an error or ran out of time, "
            f"{before[0]} of {before[1]} on the baseline")
    p = p_of_losses((before[0], after[0]), (before[1], after[1]))
    if p > alarm:
        return [], [f"{text}: so few that it may be chance (p = {p:.2g})"]
    shares = [[lost / max(1, sent) for lost, sent in side] for side in sides]
    few = min(map(len, shares)) < 2 or 0.5 / comb(len(shares[0]) + len(shares[1]), len(shares[1])) > alarm
    sure = (min(shares[1]) > max(shares[0]) and _many_but_the_worst(sides[0], sides[1], alarm)) if few else (
        p_of_runs(*shares) <= alarm)
    if sure or 2 * after[0] > after[1]:
        return [text], []
    hit = f"in {sum(share > 0 for share in shares[1])} of {len(shares[1])} runs"
    return [], [f"{text}: {hit}, " + ("and there are too few runs to tell" if few else
                                      "which something may have happened to")]


def _many_but_the_worst(
    before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], alarm: float
) -> bool:
    """Whether too many were lost also without the worst run of `after`. A run: requests lost, and all."""
    rest = sorted(after)[:-1]
    if not rest:
        return False
    lost, sent = zip(*([sum(counts) for counts in zip(*side, strict=True)] for side in (before, rest)), strict=True)
    return p_of_losses(lost, sent) <= alarm


def _lost(run: Measured) -> int:
    return sum(run.summary.outcomes.get(name, 0) for name in _LOST) - run.summary.client_faults


def _sent(run: Measured) -> int:
    return sum(run.summary.outcomes.values())


def zeroed(baseline: Sequence[Measured], candidate: Sequence[Measured], policy: Policy) -> tuple[list[str], list[str]]:
    """Rates that decide and are 0 on the candidate alone, and all other figures that are 0 in some runs: (failures,
    doubts). A rate that was 0 in all of the baseline's is no worse now.

    They have no ratio, and so no part in the figures: without a word, a gate would pass what it has not judged.
    """
    failures, doubts = [], []
    for each in zeros(baseline, candidate, tuple(policy.metrics)):
        if each.vanished and higher_is_better(each.metric):
            failures.append(each.text)
        elif each.candidate[0] or each.baseline[0] < each.baseline[1] or not higher_is_better(each.metric):
            doubts.append(each.text)
    return failures, doubts


def p_of_losses(lost: Sequence[int], sent: Sequence[int]) -> float:
    """How often the candidate of two equal engines loses as many requests as it did, or more, of as many in all.

    `lost`, `sent`: requests of the baseline and of the candidate. Fisher's exact test, one side, with mid-p (Lancaster,
    1961): the plain one errs far less often than it is asked to.
    """
    from scipy.stats import hypergeom  # here: it takes long to import

    drawn = lost[1], sum(sent), sum(lost), sent[1]
    return float(hypergeom.sf(*drawn) + hypergeom.pmf(*drawn) / 2)


def p_of_runs(before: Sequence[float], after: Sequence[float]) -> float:
    """How often the runs of two equal engines, dealt out anew, give the candidate so large a mean share lost or a
    larger one: a permutation test, one side, with mid-p. `before`, `after`: shares of a run's requests, 0..1, two runs
    at least.
    """
    from scipy.stats import permutation_test  # here: it takes long to import

    def lost_more(after: FloatArray, before: FloatArray, axis: int) -> FloatArray:
        return np.asarray(np.mean(after, axis=axis) - np.mean(before, axis=axis))

    found = permutation_test((after, before), lost_more, vectorized=True, n_resamples=_DEALS, alternative="greater",
                             random_state=0)
    above = found.null_distribution - found.statistic
    return float(np.mean(above > _EQUAL) + np.mean(np.abs(above) <= _EQUAL) / 2)


def new_conformance_failures(baseline: Path, candidate: Path) -> tuple[list[str], list[str]]:
    """Cases of MUST requirements that fail on the candidate and did not on the baseline, by the results of `pabench
    conform` below both folders, and requirements that passed there and were not decided on the candidate: (failures,
    doubts).

    Raises UsageError when either's could not be decided, or they were asked for different profiles.
    """
    asked = [[load_results(path) for path in sorted(folder.rglob(FILE_NAME))] for folder in (baseline, candidate)]
    for name, side in zip(("baseline", "candidate"), asked, strict=True):
        for results in side:
            if results.footer.exit_code not in (EXIT_OK, EXIT_NOT_CONFORMING):
                raise UsageError(f"the {name}'s conformance could not be decided (exit code "
                                 f"{results.footer.exit_code})")
    profiles = [{results.header.profile for results in side} for side in asked]
    if all(profiles) and profiles[0] != profiles[1]:
        raise UsageError(f"the baseline's conformance was asked with profile {', '.join(sorted(profiles[0]))}, the "
                         f"candidate's with {', '.join(sorted(profiles[1]))}: ask both with one")
    rows = [[row for results in side for row in results.rows if row.level == "MUST"] for side in asked]
    failed = [{row.name: row.outcome for row in side if row.outcome in NOT_CONFORMING} for side in rows]
    said = "it did not on the baseline" if asked[0] else "the baseline was not asked"
    failures = [f"{CONFORMANCE}{name} is a {outcome.value}, {said}" for name, outcome in failed[1].items()
                if name not in failed[0]]
    before, after = ({each.requirement: each.outcome for each in by_requirement(side)} for side in rows)
    doubts = [f"{CONFORMANCE}{requirement} passed on the baseline, and "
              f"{f'is {after[requirement].value} on' if requirement in after else 'was not asked of'} the candidate"
              for requirement, outcome in before.items()
              if outcome is Outcome.PASS and after.get(requirement) not in (Outcome.PASS, *NOT_CONFORMING)]
    return failures, doubts
