"""Samples and time series of runs, for drawing. Definitions: docs/measurement.md; arithmetic: pabench.analysis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from pabench.analysis import kv
from pabench.analysis.latency import ok_requests
from pabench.report.groups import RunData
from pabench.report.reduce import Floats

_GRID_POINTS = 2000


def pooled(runs: Sequence[RunData], samples_of: Callable[[pd.DataFrame], Floats]) -> Floats:
    """Raw samples of the requests of all `runs` that ended ok, as the summaries take them."""
    parts = [samples_of(ok_requests(run.requests)) for run in runs]
    joined = np.concatenate(parts) if parts else np.empty(0)
    return joined[np.isfinite(joined)]


def live_tokens(run: RunData) -> tuple[Floats, Floats]:
    """(times in seconds, live tokens), evenly over the run; empty where no request got a token."""
    ends = run.requests["end_s"].dropna()
    if ends.empty or not run.requests["first_s"].notna().any():
        return np.empty(0), np.empty(0)
    times = np.linspace(0.0, float(ends.max()), _GRID_POINTS)
    return times, kv.live_tokens(run.requests, times)


def gauge(run: RunData, column: str) -> tuple[Floats, Floats]:
    """(times in seconds, values) of a telemetry column, as scraped; empty where the engine never told it."""
    told = run.telemetry.dropna(subset=[column])
    return told["time_s"].to_numpy(dtype=np.float64), told[column].to_numpy(dtype=np.float64)
