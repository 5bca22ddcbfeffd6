"""After a run: how far the client errs at that run's own number of streams and rate of tokens, noted in its
manifest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pabench.analysis import load_run
from pabench.analysis.latency import itl_ms
from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load import Workload
from pabench.load.calibrate import ClientError, calibrate
from pabench.load.manifest import Calibration
from pabench.load.pool import ONE_PROCESS, Placement

_DURATION_S = 4.0
_SHORTEST_ITL_MS = 1.0
_DEFAULT_ITL_MS = 10.0  # where no answer has a second token


def calibrate_run(folder: Path, placement: Placement = ONE_PROCESS) -> ClientError:
    """Measure, by `hands` as the run was, and note. Raises UsageError when no request of it came back with a token."""
    run = load_run(folder)
    gaps = itl_ms(run.requests)
    if run.requests["first_s"].isna().all():
        raise UsageError(f"{folder} has no token to calibrate for: no answer was streamed")
    gap_ms = float(np.median(gaps)) if len(gaps) else _DEFAULT_ITL_MS
    found = calibrate(peak_streams(run.requests), itl_ms=max(_SHORTEST_ITL_MS, gap_ms), duration_s=_DURATION_S,
                      placement=placement)
    run.manifest.calibration = Calibration(
        streams=found.streams, itl_ms=found.itl_ms, arrival_p50_ms=found.arrival_p50_ms,
        arrival_p99_ms=found.arrival_p99_ms, gap_p99_ms=found.gap_p99_ms)
    run.manifest.write(folder)
    return found


def require_streamed(load: Workload, facts: EngineFacts) -> None:
    """Raise UsageError for a run whose answers have no times that a calibration could be for."""
    if load.beam_width is not None or "stream" not in facts.capabilities:
        raise UsageError("a calibration measures the client's error of the times of tokens, and the answers of this "
                         "run come whole: leave --calibrate (in a bench suite, calibrate) out")


def peak_streams(requests: pd.DataFrame) -> int:
    """Requests in flight at once, at most."""
    sent = requests.dropna(subset=["sent_s", "end_s"])
    steps = sorted([(time_s, 1) for time_s in sent["sent_s"]] + [(time_s, -1) for time_s in sent["end_s"]])
    return int(np.cumsum([step for _, step in steps]).max()) if steps else 0
