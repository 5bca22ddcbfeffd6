"""Prefix hits over time: of the prompt tokens that were looked up, the share that the cache had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pabench.analysis.kv import counter, increases
from pabench.report.figures import Figure, axis, line, spec
from pabench.report.groups import Engine, RunData
from pabench.report.reduce import Floats
from pabench.report.text import DOUBTED, percent

_SPANS = 40
_COUNTERS = ["prefix_queries", "prefix_hits"]


def prefix_figure(runs: Sequence[tuple[Engine, RunData]], key: str) -> Figure | None:
    """One line an engine; None where no engine tells of a look-up."""
    traces, told, silent = [], [], []
    for engine, run in runs:
        times, shares = hits_over_time(run)
        if len(times) == 0:
            silent.append(engine.name)
            continue
        traces.append(line(engine, times, 100 * shares, "%{y:.4~g} % until %{x:.3~f} s", markers=False,
                           line_shape="vh", connectgaps=False))
        told.append(f"{engine.name}: {percent(run.summary.prefix_hit_rate)} over the run")
    if not traces:
        return None
    caption = (f"Of the prompt tokens that the engine looked up in its prefix cache, those that it found: by its "
               f"counters, between scrapes, in at most {_SPANS} spans; a gap where nothing was looked up. "
               f"{'; '.join(told)}.")
    if silent:
        caption += f" Not told by {', '.join(silent)}."
    doubted = [engine.name for engine, run in runs if not run.believable and engine.name not in silent]
    caption += f" {DOUBTED.capitalize()}: {', '.join(doubted)}." if doubted else ""
    body = spec(traces, axis("time (s)", zero=True), axis("% of tokens looked up", range=[-2, 102]))
    return Figure(f"prefix-{key}", "Prefix hits", caption, f"Prefix hits over time. {'; '.join(told)}.", body)


def hits_over_time(run: RunData) -> tuple[Floats, Floats]:
    """(ends of spans in seconds, share of the tokens looked up in each that were found, NaN of none); empty where it is
    not told, or nothing was looked up at all.
    """
    told = run.telemetry.assign(**{name: counter(run.telemetry, name) for name in _COUNTERS}).dropna(subset=_COUNTERS)
    times_s, breaks_s = told["time_s"].to_numpy(dtype=np.float64), [one.at_s for one in run.manifest.resumed]
    queries, hits = (increases(told[name].to_numpy(dtype=np.float64), times_s, breaks_s) for name in _COUNTERS)
    if queries.sum() <= 0:
        return np.empty(0), np.empty(0)
    edges = np.unique(np.linspace(0, len(queries), min(_SPANS, len(queries)) + 1).astype(np.int64))[:-1]
    looked_up, found = np.add.reduceat(queries, edges), np.add.reduceat(hits, edges)
    ends = times_s[np.append(edges[1:], len(queries))]
    return ends, np.where(looked_up > 0, found / np.maximum(looked_up, 1.0), np.nan)
