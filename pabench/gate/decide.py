"""The decision: from the figures of paired runs to worse, not worse, or cannot tell yet.

For each figure two questions, each with its own error: is the candidate surely worse than the baseline, and is it
surely not worse by as much as matters? Holm's correction shares the first error among the figures, and both errors
are shared evenly among the looks, so that deciding early costs nothing (docs/gate.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p, sqrt

import numpy as np

from pabench.analysis.measures import higher_is_better
from pabench.analysis.ratio import LogRatio, geometric_mean, holm
from pabench.analysis.sides import Samples
from pabench.errors import EXIT_INCONCLUSIVE, EXIT_NOT_CONFORMING, EXIT_OK, UsageError
from pabench.gate.policy import MetricPolicy, Policy

PASS, REGRESSION, INCONCLUSIVE = "PASS", "REGRESSION", "INCONCLUSIVE"
SAME, WORSE, OPEN, WATCHED = "not worse", "worse", "cannot tell", "watched"
_EXIT = {PASS: EXIT_OK, REGRESSION: EXIT_NOT_CONFORMING, INCONCLUSIVE: EXIT_INCONCLUSIVE}
_MOST_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """What became of one figure. `baseline` is the trimmed geometric mean over its runs, `candidate` that times the
    ratio, which is the trimmed mean over pairs: so the three agree where a run was disturbed.
    """

    load: str
    metric: str
    outcome: str                  # SAME, WORSE, OPEN or WATCHED
    baseline: float
    candidate: float
    ratio: float                  # candidate / baseline
    low: float                    # of its 95 % interval
    high: float
    p: float                      # of no change for the worse, corrected for the number of figures
    count: int                    # pairs, or runs of the side that has fewer
    more: int | None = None       # so many more may decide it; None where it is decided, or not within reach


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says. `failures` always fail it, whatever the figures; all texts may be hostile."""

    outcome: str                  # PASS, REGRESSION or INCONCLUSIVE
    metrics: tuple[MetricVerdict, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()  # of the notes, those for which it does not pass

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 3 inconclusive; what could not run raised instead, and is 2."""
        return _EXIT[self.outcome]

    @property
    def more(self) -> int | None:
        """So many more pairs may decide all that is open; None when nothing is, or it is out of reach."""
        wanted = [each.more for each in self.metrics if each.outcome == OPEN]
        return max((more for more in wanted if more is not None), default=None) if None not in wanted else None


def decide(
    samples: Sequence[Samples], policy: Policy, *, num_looks: int = 1, failures: Sequence[str] = (),
    doubts: Sequence[str] = (), notes: Sequence[str] = (),
) -> Decision:
    """Judge `samples`; those of figures that the policy does not decide by are only shown. `num_looks`: how often the
    same runs, and more, are judged in all. `failures` fail it whatever the figures say; with `doubts` it does not pass.
    Raises UsageError where nothing decides.
    """
    deciding = [each for each in samples if each.metric in policy.metrics]
    if not deciding and not failures and not doubts:
        raise UsageError(f"no run has a figure that the policy decides by: {', '.join(policy.metrics)}")
    loads = dict.fromkeys(each.load for each in samples)
    unjudged = [f"{name} decides by the policy, and no run of {load} has it: it is not judged"
                for load in loads for name in policy.metrics
                if not any((each.load, each.metric) == (load, name) for each in deciding)]
    worse = [_worse_way(each) for each in deciding]
    adjusted = holm([ratio.p_above() for ratio in worse])
    alarm, missed = policy.false_alarm / num_looks, policy.missed / num_looks
    verdicts = [
        _judge(one, ratio, p, policy.metrics[one.metric], alarm, missed, len(deciding))
        for one, ratio, p in zip(deciding, worse, adjusted, strict=True)
    ]
    watched = [_told(each, WATCHED, each.ratio(), _worse_way(each).p_above())
               for each in samples if each.metric not in policy.metrics]
    return Decision(_outcome(verdicts, failures, doubts), (*verdicts, *watched), tuple(failures),
                    (*notes, *doubts, *unjudged), tuple(doubts))


def _outcome(verdicts: Sequence[MetricVerdict], failures: Sequence[str], doubts: Sequence[str]) -> str:
    outcomes = {verdict.outcome for verdict in verdicts}
    if failures or WORSE in outcomes:
        return REGRESSION
    return INCONCLUSIVE if doubts or OPEN in outcomes else PASS


def _worse_way(samples: Samples) -> LogRatio:
    """The ratio turned so that above 1 is worse."""
    ratio = samples.ratio()
    return ratio.flipped() if higher_is_better(samples.metric) else ratio


def _judge(
    samples: Samples, worse: LogRatio, p: float, policy: MetricPolicy, alarm: float, missed: float, num_figures: int
) -> MetricVerdict:
    floor = _floor(samples, policy)
    bound = max(log1p(policy.worse_by), floor)
    if p <= alarm and worse.mean >= max(log1p(policy.worse_by) / 2, floor):
        return _told(samples, WORSE, samples.ratio(), p)
    if worse.p_below(bound) <= missed:
        return _told(samples, SAME, samples.ratio(), p)
    return _told(samples, OPEN, samples.ratio(), p, _more(worse, bound, alarm / num_figures, missed, samples.paired))


def _floor(samples: Samples, policy: MetricPolicy) -> float:
    """The absolute floor as a log ratio at the baseline's level."""
    return log1p(policy.floor / geometric_mean(samples.baseline))


def _more(worse: LogRatio, bound: float, alarm: float, missed: float, paired: bool) -> int | None:
    """How many more samples would decide, did they vary as those so far and were the truth 0 or `bound`.

    The two errors' quantiles together must fit between the two. None when even _MOST_PAIRS would not do, or where the
    spread is not known.
    """
    if worse.freedom <= 0:
        return max(1, 4 - worse.count)
    from scipy.stats import t  # here: it takes long to import

    counts = np.arange(worse.count + 1, _MOST_PAIRS)
    freedom = (counts - 1) * (1 if paired else 2)
    spread = worse.error * sqrt(worse.count)
    needed = (t.ppf(1 - alarm, freedom) + t.ppf(1 - missed, freedom)) * spread / np.sqrt(counts)
    enough = counts[needed <= bound]
    return int(enough[0]) - worse.count if len(enough) else None


def _told(samples: Samples, outcome: str, ratio: LogRatio, p: float, more: int | None = None) -> MetricVerdict:
    low, high = ratio.interval()
    level = geometric_mean(samples.baseline)
    return MetricVerdict(samples.load, samples.metric, outcome, level, level * ratio.ratio, ratio.ratio, low, high, p,
                         ratio.count, more)


def change_text(ratio: float) -> str:
    """A ratio as a signed change, e.g. "+5.2 %"."""
    return f"{ratio - 1:+.1%}".replace("%", " %")
