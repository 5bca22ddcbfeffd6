"""How an engine feels: distributions of TTFT, ITL and TPOT, tails in sight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from pabench.analysis.latency import itl_ms, tpot_ms, ttft_ms
from pabench.report.figures import Figure, axis, line, spec, wide
from pabench.report.groups import Group, RunData, believed
from pabench.report.reduce import MAX_QUANTILES, Floats, quantile_curve
from pabench.report.series import pooled
from pabench.report.text import DOUBTED, count, number

# Where the quantile axis has a tick: share -> words.
_TICKS = ((0.0, "0"), (0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99"), (0.99999, "99.999"))

_LATENCIES: tuple[tuple[str, str, str, Callable[[pd.DataFrame], Floats]], ...] = (
    ("ttft", "Time to first token (TTFT)", "requests", ttft_ms),
    ("itl", "Time between tokens (ITL)", "gaps", itl_ms),
    ("tpot", "Time per output token (TPOT)", "requests", tpot_ms),
)


def feel_figures(group: Group, level: float) -> list[Figure]:
    """The distributions at one load, one figure a latency."""
    figures = [_distribution(group, level, *latency) for latency in _LATENCIES]
    return [figure for figure in figures if figure is not None]


def _distribution(
    group: Group, level: float, key: str, title: str, what: str, samples_of: Callable[[pd.DataFrame], Floats]
) -> Figure | None:
    traces, told, curves, counts = [], [], [], []
    sources = {engine.name: believed(group.at(engine, level)) for engine in group.engines}
    for engine in group.engines:
        samples = pooled(sources[engine.name], samples_of)
        if len(samples) == 0:
            continue
        stretch, shares, found = quantile_curve(samples)
        hover = f"%{{customdata}} % of {what} are at or below<br>%{{y:.4~g}} ms"
        traces.append(line(engine, stretch, found, hover, markers=False,
                           customdata=[f"{100 * share:.6g}" for share in shares.tolist()]))
        curves.append(found)
        counts.append(len(samples))
        p50, p99 = np.quantile(samples, [0.5, 0.99])
        told.append(f"{engine.name}: p50 {number(p50)}, p99 {number(p99)}, highest {number(samples.max())} ms")
    if not traces:
        return None
    caption = f"{count(sum(counts))} {what}. Read: so many per cent of {what} took at most that long; tail stretched."
    if max(counts) > MAX_QUANTILES:
        caption += f" Drawn from at most {MAX_QUANTILES} of each engine's samples, evenly along the axis."
    caption += _runs_note(group, level, sources)
    y = axis("ms", log=wide(*curves), zero=True)
    alt = f"Distribution of {title}. {'; '.join(told)}."
    return Figure(f"{key}-{_id(group, level)}", title, caption, alt, spec(traces, _share_axis(max(counts), what), y))


def _runs_note(group: Group, level: float, sources: Mapping[str, Sequence[RunData]]) -> str:
    """What was pooled and left out; whose runs may not be believed."""
    note = " Repeats at this load are pooled." if any(len(runs) > 1 for runs in sources.values()) else ""
    left_out = sum(len(group.at(engine, level)) - len(sources[engine.name]) for engine in group.engines)
    if left_out:
        note += f" Left out as {DOUBTED}: {count(left_out)} beside those shown."
    doubted = [name for name, runs in sources.items() if not all(run.believable for run in runs)]
    return note + (f" {DOUBTED.capitalize()}: {', '.join(doubted)}." if doubted else "")


def _share_axis(samples: int, what: str) -> dict[str, object]:
    """Logarithmic in 1 / (1 - q), with ticks at 50, 90, 99 … per cent as far as the samples reach."""
    ticks = [(1 / (1 - share), words) for share, words in _TICKS if 1 / (1 - share) <= samples]
    places, texts = [place for place, _ in ticks], [text for _, text in ticks]
    return axis(f"% of {what}", log=True, dtick=None, tickvals=places, ticktext=texts)


def _id(group: Group, level: float) -> str:
    return f"{group.index}-{group.levels.index(level)}"
