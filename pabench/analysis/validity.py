"""Whether a run's numbers may be believed: the client's own error against each metric. See docs/measurement.md."""

from __future__ import annotations

import pandas as pd

from pabench.analysis.summary import Quantiles, Validity
from pabench.load.manifest import Manifest

_SHARE = 0.05            # of the metric
_FLOOR_MS = 1.0
_MAX_CPU_SHARE = 0.9     # of one core: above, the loop has no time left to be on time
_MAX_FAILED_SCRAPES = 0.2
_PLANNED = {"planned", "duration"}


def judge(
    manifest: Manifest, requests: pd.DataFrame, *, ttft: Quantiles | None, itl: Quantiles | None,
    intended: Quantiles | None,
) -> Validity:
    """The verdict on a run. The client's error in an arrival time is taken to be the loop lag, quantile by quantile."""
    reasons = [
        *_incomplete(manifest, requests),
        *_late(manifest, ttft=ttft, itl=itl, intended=intended),
    ]
    client = manifest.client
    if client.cpu_share is not None and client.cpu_share > _MAX_CPU_SHARE:
        reasons.append(f"the client used {client.cpu_share:.0%} of a core: spread the load over several clients")
    if client.scrapes and client.failed_scrapes / (client.scrapes + client.failed_scrapes) > _MAX_FAILED_SCRAPES:
        reasons.append(f"{client.failed_scrapes} of {client.scrapes + client.failed_scrapes} scrapes failed or were "
                       "left out: the KV figures have gaps")
    return Validity(not reasons, tuple(reasons))


def _incomplete(manifest: Manifest, requests: pd.DataFrame) -> list[str]:
    reasons = []
    if manifest.status != "complete":
        reasons.append(f"the run is {manifest.status}" + (f": {manifest.failure}" if manifest.failure else ""))
    if not (requests["outcome"] == "ok").any():
        reasons.append("no request succeeded")
    elif manifest.window_s is None:
        reasons.append("no steady window: too few requests for this load; the figures are over the whole run")
    unsent = (requests["outcome"] == "unsent") & ~requests["error_kind"].isin(_PLANNED)
    if unsent.any():
        reasons.append(f"{int(unsent.sum())} of {len(requests)} requests were never sent")
    own_fault = (requests["error_kind"] == "client").sum()
    if own_fault:
        reasons.append(f"{int(own_fault)} requests failed on the client's machine (files, ports): raise its limits")
    if sum(manifest.outcomes.values()) != len(requests):
        reasons.append(f"the outcomes add up to {sum(manifest.outcomes.values())}, not to {len(requests)} requests")
    return reasons


def _late(
    manifest: Manifest, *, ttft: Quantiles | None, itl: Quantiles | None, intended: Quantiles | None
) -> list[str]:
    client = manifest.client
    checks = (
        ("loop lag p50", client.loop_lag_p50_ms, "TTFT p50", ttft, "p50"),
        ("loop lag p99", client.loop_lag_p99_ms, "TTFT p99", ttft, "p99"),
        ("loop lag p50", client.loop_lag_p50_ms, "ITL p50", itl, "p50"),
        ("loop lag p99", client.loop_lag_p99_ms, "ITL p99", itl, "p99"),
        ("lateness p99", client.lateness_p99_ms, "TTFT p99 from the intended start", intended, "p99"),
    )
    reasons = []
    for what, error_ms, name, metric, quantile in checks:
        if error_ms is None or metric is None:
            continue
        value = float(getattr(metric, quantile))
        allowed = max(_SHARE * value, _FLOOR_MS)
        if error_ms > allowed:
            reasons.append(f"{what} is {error_ms:.2f} ms, more than {allowed:.2f} ms allowed for a {name} "
                           f"of {value:.2f} ms")
    return reasons
