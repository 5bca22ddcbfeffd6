"""One run -> its RunSummary."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pabench.analysis import kv, latency
from pabench.analysis.deadlines import deadlines, miss_rate
from pabench.analysis.failures import failed_ways
from pabench.analysis.runs import Run
from pabench.analysis.slo import SLO, in_time
from pabench.analysis.stats import mean_or_none, quantiles
from pabench.analysis.summary import Quantiles, RunSummary
from pabench.analysis.validity import judge
from pabench.engines.dialects import DIALECTS
from pabench.load.prefix_blocks import counted_block_size

_MAX_DIAGNOSES = 5


def summarise(run: Run) -> RunSummary:
    """What the run comes to. Latencies are of requests that ended ok; throughput is of the steady window."""
    manifest, requests = run.manifest, run.requests
    duration_s = manifest.duration_s or 0.0
    window = manifest.window_s if manifest.window_s is not None else (0.0, _behind(duration_s))
    return RunSummary(
        path=run.path, label=manifest.label, workload=manifest.workload.name, load=manifest.workload.load_text,
        users=manifest.workload.users, rate_per_s=manifest.workload.rate_per_s,
        status="interrupted" if manifest.status == "running" else manifest.status,
        outcomes=dict(manifest.outcomes), client_faults=int((requests["error_kind"] == "client").sum()),
        duration_s=duration_s, window_s=window,
        **_throughput(requests, window), **_outside(requests, window, duration_s), **_latencies(run),
        **_cache(run, window),
        diagnoses=_diagnoses(requests), **_goodput(run, window),
        client_error_ms=None if manifest.calibration is None else manifest.calibration.arrival_p99_ms,
        not_applicable=_not_applicable(manifest.engine.dialect),
        failures=failed_ways(requests), notes=tuple(manifest.notes),
    )


def _not_applicable(name: str) -> tuple[str, ...]:
    known = DIALECTS.get(name)  # a later version's is none
    return () if known is None else tuple(sorted(known.not_applicable))


def _goodput(run: Run, window: tuple[float, float]) -> dict[str, Any]:
    """What was in time; nothing where the workload has no SLO."""
    bounds = run.manifest.workload.slo
    if bounds is None:
        return {}
    slo = SLO(bounds.ttft_ms, bounds.tpot_ms, deadline_ms=bounds.deadline_ms)
    answered = run.requests[run.requests["outcome"] == "ok"]
    if len(answered) and answered["first_s"].isna().all():  # not streamed: nobody knows when its tokens came
        return {"slo": slo.bounds_text}
    good = in_time(run.requests, slo)
    ended = run.requests.loc[good.index[good], "end_s"].between(*window)
    missed = None if slo.deadline_ms is None else miss_rate(deadlines(answered, slo.deadline_ms, slo.ttft_ms))
    return {"slo": slo.bounds_text, "in_time_share": float(good.mean()) if len(good) else None,
            "deadline_miss_rate": missed,
            "goodput_per_s": _per_s(int(ended.sum()), window[1] - window[0])}


def _throughput(requests: pd.DataFrame, window: tuple[float, float]) -> dict[str, Any]:
    """Rates in the window, and token totals. No token of an answer that went wrong counts as verified there."""
    length_s = window[1] - window[0]
    checked = bool(requests["verified_tokens"].notna().any())
    right = requests[(requests["wrong_tokens"] == 0) & requests["verified_tokens"].notna()]
    verified = right["verified_tokens"].to_numpy(dtype=np.float64)
    done = requests[(requests["outcome"] == "ok") & requests["end_s"].between(*window)]
    return {
        "throughput_tokens_per_s": _per_s(_tokens_in(requests, window, latency.output_tokens(requests)), length_s),
        "verified_tokens_per_s": _per_s(_tokens_in(right, window, verified), length_s) if checked else None,
        "request_rate_per_s": _per_s(len(done), length_s),
        "output_tokens": int(np.nansum(latency.output_tokens(requests))),
        "verified_tokens": int(requests["verified_tokens"].sum()) if checked else None,
        "wrong_tokens": int(requests["wrong_tokens"].sum()) if checked else None,
    }


def _outside(requests: pd.DataFrame, window: tuple[float, float], duration_s: float) -> dict[str, Any]:
    """Output tokens a second while the load came up, and while it went down: no part of the throughput."""
    def rate(start_s: float, end_s: float, until_s: float) -> float | None:
        tokens = _tokens_in(requests, (start_s, until_s), latency.output_tokens(requests))
        return tokens / (end_s - start_s) if end_s > start_s else None

    return {"ramp_tokens_per_s": rate(0.0, window[0], window[0]),
            "drain_tokens_per_s": rate(window[1], duration_s, _behind(duration_s))}


def _behind(end_s: float) -> float:
    """The end of a span that what came at `end_s` lies inside: the last read of all ends a run."""
    return math.nextafter(end_s, math.inf)


def _latencies(run: Run) -> dict[str, Any]:
    ok = latency.ok_requests(run.requests)
    ttft, intended, itl = latency.ttft_ms(ok), latency.ttft_ms(ok, intended=True), latency.itl_ms(ok)
    return {
        "ttft_ms": quantiles(ttft), "ttft_intended_ms": quantiles(intended), "itl_ms": quantiles(itl),
        "itl_spread_share": latency.spread_share(ok),
        "tpot_ms": quantiles(latency.tpot_ms(ok)), "e2e_ms": quantiles(latency.e2e_ms(ok)),
        "lateness_ms": quantiles(latency.lateness_ms(run.requests)),
        "normalised_latency_ms": quantiles(latency.normalised_ms(ok)),
        "ttft_ms_by_priority": _by_priority(ok),
        "validity": judge(run.manifest, run.requests, ttft=ttft, itl=itl, intended=intended),
    }


def _by_priority(ok: pd.DataFrame) -> dict[str, Quantiles]:
    """TTFT of each priority that was answered, the most urgent first."""
    found = {f"{priority:.0f}": quantiles(latency.ttft_ms(some)) for priority, some in ok.groupby("priority")}
    return {priority: told for priority, told in found.items() if told is not None}


def _cache(run: Run, window: tuple[float, float]) -> dict[str, Any]:
    requests, telemetry = run.requests, run.telemetry
    breaks_s = [one.at_s for one in run.manifest.resumed]
    steady = kv.in_window(telemetry, window)
    geometry = run.manifest.engine.kv
    capacity = None if geometry is None else geometry.capacity_tokens
    size = counted_block_size(None if geometry is None else geometry.block_size)
    told = bool(requests["prefix_blocks"].notna().all())  # older records do not tell
    live, used = kv.mean_live_tokens(requests, window), kv.effective_utilisation(requests, telemetry, window, capacity)
    live_once, used_once = (live, used) if told else (None, None)
    if told and requests["prefix_blocks"].map(len).any():
        shared = kv.shared_tokens(requests, size)
        live_once = kv.mean_live_tokens(requests, window, shared)
        used_once = kv.effective_utilisation(requests, telemetry, window, capacity, shared)
    return {
        "peak_running": _max_or_none(telemetry["running"]),
        "mean_running": mean_or_none(steady["running"].to_numpy(dtype=np.float64)),
        "kv_usage_mean": mean_or_none(steady["kv_usage"].to_numpy(dtype=np.float64)),
        "kv_usage_max": _max_or_none(steady["kv_usage"]),
        "live_tokens_mean": live, "effective_utilisation": used,
        "live_tokens_once_mean": live_once, "effective_utilisation_once": used_once,
        "preemptions": kv.counter_increase(telemetry, "preemptions", breaks_s),
        "prefix_hit_rate": kv.prefix_hit_rate(telemetry, breaks_s),
        "waste": kv.waste_split(telemetry, window, capacity),
    }


def _tokens_in(requests: pd.DataFrame, window: tuple[float, float], totals: NDArray[np.float64]) -> int:
    """Tokens that came inside the window. Those of an answer without token times, `totals` of it, came at its end."""
    times = latency.token_times(requests)
    ends = requests["end_s"].to_numpy(dtype=np.float64)
    whole = requests["first_s"].isna().to_numpy() & (ends >= window[0]) & (ends < window[1])
    return int(np.count_nonzero((times >= window[0]) & (times < window[1])) + np.nansum(totals[whole]))


def _per_s(count: float, length_s: float) -> float:
    return count / length_s if length_s > 0 else 0.0


def _max_or_none(column: pd.Series) -> float | None:
    return None if column.dropna().empty else float(column.max())


def _diagnoses(requests: pd.DataFrame) -> tuple[str, ...]:
    """Texts of the first few wrong answers, each headed by its request."""
    told = requests[requests["diagnosis"].notna()].head(_MAX_DIAGNOSES)
    return tuple(f"{row.request_id}\n{_text_of(str(row.diagnosis))}" for row in told.itertuples(index=False))


def _text_of(diagnosis: str) -> str:
    try:
        return str(json.loads(diagnosis)["text"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return "its diagnosis cannot be read"
