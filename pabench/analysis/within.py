"""How sure a single run is of its own figures: moving-blocks bootstrap over its requests, in the schedule's order, all
gaps of a request together. Throughput is resampled in bins as long as an answer.

Two runs of one schedule are resampled alike, so that what their requests share cancels. It knows nothing of how two
runs of one engine differ, which is often more: several runs a side tell that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import exp, log

import numpy as np
import pandas as pd

from pabench.analysis import latency
from pabench.analysis.latency import Samples
from pabench.analysis.runs import Run
from pabench.analysis.stats import block_picks

_RESAMPLES = 500
_LATENCY: dict[str, Callable[..., Samples]] = {
    "ttft": latency.ttft_ms, "ttft_intended": partial(latency.ttft_ms, intended=True), "tpot": latency.tpot_ms,
    "itl": latency.itl_ms, "e2e": latency.e2e_ms, "normalised_latency": latency.normalised_ms,
}
_MOST_REQUESTS = 20_000
_MOST_GAPS = 50_000
_ENOUGH = 100    # requests, however long
_BIN_S = 0.25
_FEWEST = 10     # requests, or bins


def ratio_interval(one: Run, other: Run, metric: str, confidence: float = 0.95) -> tuple[float, float] | None:
    """Of other / one, as each run by itself tells it; None for a figure that has no samples of its own."""
    draws = [_draws(run, metric) for run in (one, other)]
    if draws[0] is None or draws[1] is None:
        return None
    steps = [log(b / a) for a, b in zip(draws[0], draws[1], strict=True) if a > 0 and b > 0]
    if len(steps) < _RESAMPLES // 2:
        return None
    low, high = np.quantile(steps, [(1 - confidence) / 2, (1 + confidence) / 2])
    return exp(low), exp(high)


def interval(run: Run, metric: str, confidence: float = 0.95) -> tuple[float, float] | None:
    """Of the figure, as the run by itself tells it; None for one that has no samples of its own, or too few."""
    draws = _draws(run, metric)
    if draws is None:
        return None
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _draws(run: Run, metric: str) -> Samples | None:
    """The figure over resampled runs."""
    name, _, statistic = metric.removesuffix("_ms").rpartition("_")
    if metric == "throughput_tokens_per_s":
        return _resampled(_rate_a_bin(run), np.mean)
    if name not in _LATENCY:
        return None
    take = np.mean if statistic == "mean" else partial(np.quantile, q=float(statistic[1:]) / 100)
    requests = latency.ok_requests(run.requests.sort_values("index"))
    if name == "itl":
        return _resampled_gaps(requests, take)
    samples = _LATENCY[name](requests)
    return _resampled(samples[:: -(-len(samples) // _MOST_REQUESTS) or 1], take)


def _resampled_gaps(requests: pd.DataFrame, take: Callable[..., object]) -> Samples | None:
    """`take` of the gaps, ms, of each resample of the requests: `[_RESAMPLES]`."""
    counts = latency.num_gaps(requests)
    stride = min(-(-int(counts.sum()) // _MOST_GAPS), len(requests) // _ENOUGH)
    thin = slice(None, None, max(1, stride))  # whole requests: a gap's place in it tells
    requests, counts = requests[thin], counts[thin]
    each = np.split(latency.itl_ms(requests), np.cumsum(counts)[:-1])
    if len(requests) < _FEWEST or counts.sum() == 0:
        return None
    picks = block_picks(len(each), _block(len(each)), _RESAMPLES)
    return np.asarray([take(np.concatenate([each[at] for at in pick])) for pick in picks], dtype=np.float64)


def _rate_a_bin(run: Run) -> Samples:
    """Output tokens a second in each bin of the steady window, as long as an answer of this run takes (the median)."""
    start, end = run.manifest.window_s or (0.0, run.manifest.duration_s or 0.0)
    e2e_s = latency.e2e_ms(latency.ok_requests(run.requests)) / 1e3
    edges = np.arange(start, end, max(_BIN_S, float(np.median(e2e_s)) if len(e2e_s) else 0.0))
    if len(edges) < 3:
        return np.empty(0)
    counts, _ = np.histogram(latency.token_times(run.requests), edges)
    return np.asarray(counts / np.diff(edges), dtype=np.float64)


def _resampled(samples: Samples, take: Callable[..., object]) -> Samples | None:
    """`take` of each resample of `samples`: `[_RESAMPLES]`."""
    if len(samples) < _FEWEST:
        return None
    picks = block_picks(len(samples), _block(len(samples)), _RESAMPLES)
    return np.asarray(take(samples[picks], axis=1), dtype=np.float64)


def _block(count: int) -> int:
    """Blocks of n^(1/3) neighbours: the order that minimises the variance's error (Hall, Horowitz and Jing 1995)."""
    return max(1, round(float(np.cbrt(count))))
