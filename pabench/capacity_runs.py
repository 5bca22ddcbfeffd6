"""The runs of a search for the capacity: what each says of its rate, and when it says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

import pandas as pd

from pabench.analysis.slo import SLO, answer_gaps, in_time
from pabench.analysis.summary import Validity
from pabench.analysis.validity import CLIENT_MOVES, MAX_CPU_SHARE, NO_SUCCESS, NO_WINDOW, SCRAPES_FAILED
from pabench.capacity import Attained
from pabench.engines.base import EngineFacts
from pabench.errors import PabenchError, UsageError
from pabench.load import Workload
from pabench.load.draws import NoArrivals
from pabench.load.manifest import ClientHealth
from pabench.load.workload import Bounds
from pabench.series import Series

_CLIENT_SHARE = 0.05  # of the SLO's bound, that the client may be late
# Reasons of a run's validity that do not end a search: a window is for throughput and scrapes are for the cache, no
# success is a share of 0, and the client's lateness is held against the SLO's bounds by `too_slow`.
_NO_MATTER = (NO_WINDOW, NO_SUCCESS, SCRAPES_FAILED, CLIENT_MOVES)


@dataclass(frozen=True, slots=True)
class CapacityRuns:
    """`capacity.Measure` on an engine: runs of `workload`, which has a rate and a duration, below `folder`."""

    series: Series
    workload: Workload
    slo: SLO
    folder: Path

    def __call__(self, rate: float, number: int) -> Attained:
        """Run number `number` of the search. Raises PabenchError where it says nothing of the engine."""
        at_rate = self.workload.arrivals.model_copy(update={"rate_per_s": rate})
        bounds = Bounds(ttft_ms=self.slo.ttft_ms, tpot_ms=self.slo.tpot_ms, deadline_ms=self.slo.deadline_ms)
        plan = self.workload.model_copy(update={  # its own window would be another length's, its SLO another question's
            "arrivals": at_rate, "num_requests": None, "window_s": None, "slo": bounds})
        try:
            run, summary = self.series.run(number, plan, self.folder / f"{number:02}-{rate:.6g}-per-s")
        except NoArrivals:
            return Attained(0, 0)
        if (why := self._says_nothing(run.manifest.failure, run.manifest.client, run.requests, summary.validity)):
            raise PabenchError(f"the run at {rate:.3g} {self.workload.rate_unit} {why}")
        return attained_in(run.requests, self.slo)

    def _says_nothing(
        self, failure: str | None, client: ClientHealth, requests: pd.DataFrame, validity: Validity
    ) -> str | None:
        if failure is not None:
            return f"failed: {failure}"
        if (slow := too_slow(client, requests, self.slo)) is not None:
            return f"says no more, for the client itself is too slow: {slow}"
        why = unusable(validity)
        return None if why is None else f"is INVALID: {why}"


def require_searchable(workload: Workload, facts: EngineFacts) -> None:
    """Raise UsageError where answers come whole: a capacity is told by the times of tokens."""
    whole = None
    if workload.beam_width is not None:
        whole = f"the beams of workload {workload.name!r} come whole"
    elif "stream" not in facts.capabilities:
        whole = f"dialect {facts.dialect!r} of this engine does not stream"
    if whole is not None:
        raise UsageError(f"a capacity is told by the times of tokens, and {whole}: use pabench sweep")


def attained_in(requests: pd.DataFrame, slo: SLO) -> Attained:
    """Requests of a run (columns of REQUEST_SCHEMA) that were in time; see `in_time`."""
    found = in_time(requests, slo)
    return Attained(int(found.sum()), len(found))


def too_slow(client: ClientHealth, requests: pd.DataFrame, slo: SLO) -> str | None:
    """Why the client's own error is too large beside the SLO's bounds; None: it is not.

    It may move TTFT and TPOT by 5 % of their bounds, or by 1 ms. Its lag moves the last token of an answer, and so its
    TPOT by a share of that: one over the gaps between the answer's tokens. It may make a token miss its deadline by all
    of it. Late sending moves TTFT alone.
    """
    gaps, spans_s = answer_gaps(requests), requests["last_s"] - requests["first_s"]
    several = spans_s > 0  # what failed, or has one token, has no gap
    ttft_ms = inf if slo.ttft_ms is None else slo.ttft_ms
    tpot_ms = inf if slo.tpot_ms is None or not several.any() else slo.tpot_ms * float(gaps[several].median())
    deadline_ms = inf if slo.deadline_ms is None else slo.deadline_ms
    lag_ms = client.loop_lag_p99_ms
    gap_ms = float((spans_s / gaps)[several].median()) * 1e3 if several.any() else inf
    if lag_ms is not None and client.kernel_stamps and lag_ms < gap_ms:
        lag_ms = None  # it is in no arrival: no two tokens of a stream are read at once
    for name, late_ms, bound_ms in (("sends", client.lateness_p99_ms, ttft_ms),
                                    ("sees answers", lag_ms, min(ttft_ms, tpot_ms, deadline_ms))):
        allowed_ms = max(_CLIENT_SHARE * bound_ms, 1.0)
        if late_ms is not None and late_ms > allowed_ms:
            return f"it {name} up to {late_ms:.1f} ms late (p99), more than the {allowed_ms:.1f} ms allowed"
    if client.cpu_share is not None and client.cpu_share > MAX_CPU_SHARE:
        return f"it used {client.cpu_share:.0%} of a core"
    return None


def unusable(validity: Validity) -> str | None:
    """Why a run says nothing of what was asked, though the client was quick enough; None: it does."""
    reasons = [reason for reason in validity.reasons if not any(words in reason for words in _NO_MATTER)]
    return "; ".join(reasons) or None
