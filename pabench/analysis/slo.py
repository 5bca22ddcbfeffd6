"""What in time means, and which requests were."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from pabench.analysis.deadlines import deadlines
from pabench.errors import UsageError


def percent(share: float) -> str:
    """`share` in words, to four digits: 99.9 % may be asked for, and are not all."""
    return f"{100 * share:.4g}%"


@dataclass(frozen=True, slots=True)
class SLO:
    """What in time means. Milliseconds; None: not asked. TTFT counts from the intended start; with `deadline_ms` no
    token may come later than its own deadline (`deadlines`).
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    share: float = 0.9
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.ttft_ms, self.tpot_ms, self.deadline_ms) if bound is not None]
        if not bounds:
            raise UsageError("an SLO needs a bound: give --ttft-ms, --tpot-ms, --deadline-ms or several")
        if not all(0 < bound < math.inf for bound in bounds) or not 0 < self.share < 1:
            raise UsageError(f"an SLO has bounds above 0 and a share inside 0..1: got {bounds} ms, share {self.share}")

    @property
    def text(self) -> str:
        """In words."""
        return f"{percent(self.share)} of requests with {self.bounds_text}"

    @property
    def bounds_text(self) -> str:
        """The bounds alone, in words."""
        bounds = {"TTFT <= {:g} ms": self.ttft_ms, "TPOT <= {:g} ms": self.tpot_ms,
                  "a token each {:g} ms": self.deadline_ms}
        return " and ".join(words.format(ms) for words, ms in bounds.items() if ms is not None)


def in_time(requests: pd.DataFrame, slo: SLO) -> pd.Series:
    """Which requests of a run (columns of REQUEST_SCHEMA) were in time; whatever was not answered rightly was not.

    Those that the client cut off as planned, or never sent, are not counted. An answer of one token has no TPOT.
    """
    counted = requests[(requests["outcome"] != "unsent") & (requests["error_kind"] != "planned")]
    good = counted["outcome"] == "ok"
    if slo.ttft_ms is not None:
        good &= (counted["first_s"] - counted["intended_s"]) * 1000 <= slo.ttft_ms
    if slo.tpot_ms is not None:
        good &= (counted["last_s"] - counted["first_s"]) / answer_gaps(counted) * 1000 <= slo.tpot_ms
    if slo.deadline_ms is not None:
        good &= deadlines(counted, slo.deadline_ms, slo.ttft_ms).missed == 0
    found: pd.Series = good
    return found


def answer_gaps(requests: pd.DataFrame) -> pd.Series:
    """Gaps between the tokens of each request's answer, of one of its n; 1 at least."""
    gaps: pd.Series = (requests["token_times_s"].map(len) / requests["n"] - 1).clip(lower=1)
    return gaps
