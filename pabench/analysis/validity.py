"""Whether a run's numbers may be believed: the client's own error against each metric. See docs/measurement.md."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pabench.analysis.latency import Samples, e2e_ms, lateness_ms, ok_requests
from pabench.analysis.summary import Validity
from pabench.load.manifest import Manifest

# Words of reasons that others tell apart.
NO_SUCCESS = "no request succeeded"
NO_WINDOW = "no steady window"
SCRAPES_FAILED = "scrapes failed"
CLIENT_MOVES = "of the client moves the"

_SHARE = 0.05            # of the metric
_DRAWS = 200_000         # of lags: so many samples tell enough in one round, and of more so many
_FLOOR_MS = 1.0
MAX_CPU_SHARE = 0.9     # of one core: above, the loop has no time left to be on time
_MAX_FAILED_SCRAPES = 0.2
_UNSEEN_SHARE = 0.1      # of the answers
_BEYOND = 0.05           # of a window that was asked for, behind the last answer
_PLANNED = {"planned", "duration"}


def judge(
    manifest: Manifest, requests: pd.DataFrame, *, ttft: Samples, intended: Samples, itl: Samples
) -> Validity:
    """The verdict on a run, from its manifest, its requests and its raw latencies in ms (without NaN)."""
    reasons = [*_incomplete(manifest, requests), *_late(manifest, requests, ttft, intended, itl),
               *_miscalibrated(manifest, ttft, itl), *_miscounted(requests)]
    if manifest.cache is not None and manifest.cache.broken is not None:
        reasons.append(f"the cache was not {manifest.cache.text}, as stated: {manifest.cache.broken}")
    reasons += _unwatched(manifest, requests)
    client = manifest.client
    if client.cpu_share is not None and client.cpu_share > MAX_CPU_SHARE:
        reasons.append(f"the client used {client.cpu_share:.0%} of a core: spread the load over several clients")
    tried = client.scrapes + client.failed_scrapes
    if "kv_metrics" in manifest.engine.capabilities and client.failed_scrapes > _MAX_FAILED_SCRAPES * tried:
        reasons.append(f"{client.failed_scrapes} of {tried} {SCRAPES_FAILED} or were left out: the KV figures have "
                       "gaps")
    return Validity(not reasons, tuple(reasons))


def _incomplete(manifest: Manifest, requests: pd.DataFrame) -> list[str]:
    reasons = []
    if manifest.status != "complete":
        reasons.append(f"the run is {manifest.status}" + (f": {manifest.failure}" if manifest.failure else ""))
    if not (requests["outcome"] == "ok").any():
        reasons.append(NO_SUCCESS)
    elif manifest.window_s is None:
        reasons.append(f"{NO_WINDOW}: too few requests for this load; the figures are over the whole run")
    reasons += _misplaced(manifest)
    users, busy = manifest.workload.users, requests["user"].nunique()
    if users is not None and busy < users:
        reasons.append(f"of {users} users {busy} had something to ask: give it more requests")
    unsent = (requests["outcome"] == "unsent") & ~requests["error_kind"].isin(_PLANNED)
    if unsent.any():
        reasons.append(f"{int(unsent.sum())} of {len(requests)} requests were never sent")
    own_fault = (requests["error_kind"] == "client").sum()
    if own_fault:
        reasons.append(f"{int(own_fault)} requests failed on the client's machine (files, ports): raise its limits")
    if sum(manifest.outcomes.values()) != len(requests):
        reasons.append(f"the outcomes add up to {sum(manifest.outcomes.values())}, not to {len(requests)} requests")
    return reasons


def _misplaced(manifest: Manifest) -> list[str]:
    """What is wrong with the window that was asked for: time in it without a load makes rates too low."""
    asked, end_s = manifest.workload.window_s, manifest.duration_s or 0.0
    if asked is None:
        return []
    reasons = []
    if asked[1] > end_s + _BEYOND * (asked[1] - asked[0]):
        reasons.append(f"the window ends at {asked[1]:.4g} s, the run at {end_s:.4g} s")
    reasons += [f"the run was broken off at {one.at_s:.4g} s, in the window"
                for one in manifest.resumed if asked[0] < one.at_s < asked[1]]
    return reasons


def _unwatched(manifest: Manifest, requests: pd.DataFrame) -> list[str]:
    """Where the client was killed nothing is known of its lag: not in the window, nor in what latencies are of."""
    sent_s = ok_requests(requests)["sent_s"]
    unseen = sum(((sent_s >= since) & (sent_s < until)).sum() for since, until in manifest.unwatched_spans)
    if manifest.window_s is not None and any(since < manifest.window_s[1] and manifest.window_s[0] < until
                                             for since, until in manifest.unwatched_spans):
        return ["the client was killed: nothing is known of its lag in a part of the window"]
    if unseen > _UNSEEN_SHARE * len(sent_s):
        return [f"the client was killed: nothing is known of its lag when {unseen} of {len(sent_s)} requests were sent"]
    return []


def _miscounted(requests: pd.DataFrame) -> list[str]:
    """Whether usage and the ids in the streams tell the same number of tokens, over the run."""
    both = requests[requests["outcome"].isin(["ok", "wrong"]) & requests["output_tokens"].notna()
                    & (requests["token_ids"].map(len) > 0)]
    told, came = float(both["output_tokens"].sum()), float(both["stream_tokens"].sum())
    if abs(told - came) <= _SHARE * came:
        return []
    return [f"the engine's usage tells {told:.0f} output tokens, its streams hold {came:.0f}"]


def _late(
    manifest: Manifest, requests: pd.DataFrame, ttft: Samples, intended: Samples, itl: Samples
) -> list[str]:
    """Quantiles that the client's lag or lateness moves by more than it may."""
    reasons = []
    lag = np.asarray(manifest.client.loop_lag_percentiles_ms, dtype=np.float64)
    ok = ok_requests(requests)
    name, own = "TTFT", lateness_ms(ok[ok["first_s"].notna()])
    if len(ttft) == 0:  # answers that came whole: their ends are the event loop's
        name, ttft, intended, own = "E2E", e2e_ms(ok), e2e_ms(ok, intended=True), lateness_ms(ok)
    elif manifest.client.kernel_stamps:
        lag = _unmerged(lag, itl)
    for quantile in (0.5, 0.99):
        if len(lag):
            reasons += _unless_small("loop lag", name, ttft, quantile, moved_by_lag(ttft, lag, quantile, ends=1))
            reasons += _unless_small("loop lag", "ITL", itl, quantile, moved_by_lag(itl, lag, quantile, ends=2))
        if len(intended):
            late = abs(np.quantile(intended, quantile) - np.quantile(intended - own, quantile))
            reasons += _unless_small("late sending", f"{name} from the intended start", intended, quantile, float(late))
    return reasons


def _unmerged(lag: Samples, itl: Samples) -> Samples:
    """The lag that shows in arrivals stamped by the kernel: that which outlasts the gap to a stream's next chunk.

    Chunks that are read together bear the time of the last of them.
    """
    gap_ms = float(np.median(itl)) if len(itl) else np.inf
    return np.where(lag < gap_ms, 0.0, lag)


def _miscalibrated(manifest: Manifest, ttft: Samples, itl: Samples) -> list[str]:
    """Quantiles smaller than the client's error against the stub allows, where it was calibrated."""
    found = manifest.calibration
    if found is None:
        return []
    cause = f"against the stub ({found.streams} streams, a token each {found.itl_ms:.1f} ms) the error"
    return [*_unless_small(cause, "TTFT", ttft, 0.5, found.arrival_p50_ms),
            *_unless_small(cause, "TTFT", ttft, 0.99, found.arrival_p99_ms),
            *_unless_small(cause, "ITL", itl, 0.99, found.gap_p99_ms)]


def moved_by_lag(samples: Samples, lag_percentiles: Samples, quantile: float, *, ends: int) -> float:
    """How far the client's lag moves a quantile of `samples`, same unit as both.

    The samples have the lag in them already, and adding it once more moves them about as far as it did the first
    time. `ends` 1: only the later moment is an arrival (TTFT); 2: both are, and their lags partly cancel (ITL).
    """
    if len(samples) == 0 or not lag_percentiles.any():
        return 0.0
    rng = np.random.default_rng(0)
    if len(samples) > _DRAWS:
        samples = samples[rng.integers(len(samples), size=_DRAWS)]
    rounds = max(1, min(200, _DRAWS // len(samples)))

    def draw() -> Samples:
        at = rng.uniform(0, len(lag_percentiles) - 1, size=(rounds, len(samples)))
        return np.interp(at, np.arange(len(lag_percentiles)), lag_percentiles)

    moved = samples + draw() - (draw() if ends == 2 else 0.0)
    shifts = np.quantile(moved, quantile, axis=1) - np.quantile(samples, quantile)
    return float(np.abs(shifts).mean())


def _unless_small(cause: str, name: str, samples: Samples, quantile: float, error_ms: float) -> list[str]:
    if len(samples) == 0:
        return []
    value = float(np.quantile(samples, quantile))
    allowed = max(_SHARE * value, _FLOOR_MS)
    if error_ms <= allowed:
        return []
    return [f"{cause} {CLIENT_MOVES} {name} p{quantile * 100:g} of {value:.1f} ms by {error_ms:.1f} ms, "
            f"more than the {allowed:.1f} ms allowed"]
