"""What the KV cache does: sequences held, use beside live tokens, waste, prefix hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pabench.analysis.summary import WasteSplit
from pabench.report.block_figures import block_figures
from pabench.report.figures import Figure, axis, line, spec
from pabench.report.groups import Engine, Group, RunData, believed
from pabench.report.load_figures import by_load
from pabench.report.palette import WASTE
from pabench.report.prefix_figures import prefix_figure
from pabench.report.reduce import MAX_SERIES_POINTS, Floats, low_and_high, rounded
from pabench.report.series import gauge, live_tokens
from pabench.report.text import DOUBTED, count, label, number, percent

_PATTERN = {"fgcolor": "rgba(255,255,255,.55)", "fillmode": "overlay", "solidity": 0.2, "size": 7}


def memory_by_load(group: Group) -> list[Figure]:
    """Sequences held, effective utilisation, prefix hits and preemptions by load."""
    figures = [
        by_load(group, "held", "Sequences held at once", "sequences", lambda s: s.mean_running,
                "Mean of the requests in the batch over the steady window, from the engine's own gauge."),
        by_load(group, "utilisation", "Effective utilisation", "% of slots in use", lambda s: s.utilisation,
                _utilisation_caption(group), share=True),
    ]
    if any(run.summary.prefix_hit_rate is not None for engine in group.engines for run in engine.runs):
        figures.append(by_load(group, "prefix-hits", "Prefix hits by load", "% of tokens looked up",
                               lambda s: s.prefix_hit_rate, "Prompt tokens that the prefix cache had, of those looked "
                               "up in it, over the run.", share=True))
    if any(run.summary.preemptions for engine in group.engines for run in engine.runs):
        figures.append(by_load(group, "preemptions", "Preemptions", "preemptions in the run", lambda s: s.preemptions,
                               "Times that a running request lost its place to another."))
    return [figure for figure in figures if figure is not None]


def _utilisation_caption(group: Group) -> str:
    exact = [engine.name for engine in group.engines if any(run.summary.waste is not None for run in engine.runs)]
    bound = [engine.name for engine in group.engines if any(run.summary.utilisation_is_bound for run in engine.runs)]
    caption = "Share of the slots in use that hold tokens"
    caption += f": the engine's own split for {', '.join(exact)}; else" if exact else ","
    caption += (" live tokens from the client's record, with prefixes that requests share counted once (older "
                "runs: once for each, so that it may pass 100 %).")
    return caption + (f" At most, of {', '.join(bound)}: preempted requests count as live." if bound else "")


def memory_at_level(group: Group, level: float) -> list[Figure]:
    """Waste split, block maps, and over time running sequences, each engine's use beside live tokens, prefix hits."""
    last = [(engine, believed(group.at(engine, level))[-1]) for engine in group.engines if group.at(engine, level)]
    key = f"{group.index}-{group.levels.index(level)}"
    repeated = any(len(group.at(engine, level)) > 1 for engine, _ in last)
    figures = [_waste(last, key), *block_figures(last, key), _running(last, key, repeated)]
    lives = [live_tokens(run) for _, run in last]
    top = max((_peak(run, live) for (_, run), (_, live) in zip(last, lives, strict=True)), default=0.0)
    for (engine, run), live in zip(last, lives, strict=True):
        figures.append(_timeline(engine, run, live, key, top, repeated))
    figures.append(prefix_figure(last, key))
    return [figure for figure in figures if figure is not None]


def _waste(runs: Sequence[tuple[Engine, RunData]], key: str) -> Figure | None:
    """Stacked bars of the exact split, for the engines that tell it."""
    splits = [(engine, run.summary.waste) for engine, run in runs if run.summary.waste is not None]
    if not splits:
        return None
    names = [label(engine.name, 22) for engine, _ in splits]
    traces = [_waste_bar(splits, *state) for state in WASTE]
    silent = [engine.name for engine, run in runs if run.summary.waste is None]
    caption = "Mean share of all KV slots while requests ran."
    if silent:
        caption += f" Not told by {', '.join(silent)}."
    caption += _doubt(runs)
    told = [f"{engine.name}: {_split_text(split)}" for engine, split in splits]
    body = spec(
        traces,
        axis("% of all slots", range=[0, 100]),
        {"autorange": "reversed", "tickvals": list(range(len(names))), "ticktext": names},
        barmode="stack",
        bargap=0.35,
    )
    # On a phone the legend takes several rows: all of it is shown, and a text that does not fit its bar is not.
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal", "maxheight": 120}
    body["layout"] |= {"showlegend": True, "legend": legend, "uniformtext": {"minsize": 10, "mode": "hide"}}
    alt = f"Stacked bars of the state of KV slots. {'; '.join(told)}."
    return Figure(f"waste-{key}", "Where the slots go", caption, alt, body, height=150 + 48 * len(names), wide=True)


def _waste_bar(splits: Sequence[tuple[Engine, WasteSplit]], key: str, name: str, colour: str, shape: str) -> go.Bar:
    shares = [100 * float(getattr(split, key)) for _, split in splits]
    return go.Bar(
        x=rounded(np.array(shares)),
        y=list(range(len(shares))),
        orientation="h",
        name=name,
        text=[f"{share:.0f} %" if share >= 6 else "" for share in shares],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        customdata=[label(engine.name) for engine, _ in splits],
        marker={"color": colour, "pattern": {"shape": shape, **_PATTERN}},
        hovertemplate=f"{name}: %{{x:.3~g}} %<extra>%{{customdata}}</extra>",
    )


def _split_text(split: WasteSplit) -> str:
    return ", ".join(f"{name} {percent(getattr(split, key))}" for key, name, _, _ in WASTE)


def _running(runs: Sequence[tuple[Engine, RunData]], key: str, repeated: bool) -> Figure | None:
    traces, told, silent, shortened = [], [], [], False
    for engine, run in runs:
        times, running = gauge(run, "running")
        if len(times) == 0:
            silent.append(engine.name)
            continue
        shortened = shortened or len(times) > MAX_SERIES_POINTS
        drawn = low_and_high(times, running)
        traces.append(line(engine, *drawn, "%{y} sequences at %{x:.3~f} s", markers=False))
        told.append(f"{engine.name}: at most {count(float(running.max()))}, mean {number(float(running.mean()))}")
    if not traces:
        return None
    caption = "Requests in the batch over time, from the engine's gauge." + _series_note(shortened, repeated)
    caption += _doubt(runs)
    if silent:
        caption += f" Not told by {', '.join(silent)}."
    alt = f"Sequences running over time. {'; '.join(told)}."
    body = spec(traces, axis("time (s)", zero=True), axis("sequences", zero=True))
    return Figure(f"running-{key}", "Running sequences", caption, alt, body)


def _timeline(
    engine: Engine, run: RunData, lives: tuple[Floats, Floats], key: str, top: float, repeated: bool
) -> Figure | None:
    """Slots in use (area) and live tokens (line) of one engine; the gap between them is waste."""
    capacity = run.capacity_tokens
    used_times, used = gauge(run, "kv_usage")
    live_times, live = lives
    if len(used_times) == 0 and len(live_times) == 0:
        return None
    shortened = max(len(used_times), len(live_times)) > MAX_SERIES_POINTS
    traces: list[Any] = []
    caption, told = [], []
    if len(used_times) and capacity is not None:
        traces.append(_area(engine, *low_and_high(used_times, used * capacity)))
        caption.append(f"Area: slots in use, of {count(capacity)}.")
        told.append(f"slots in use at most {count(round(float(used.max()) * capacity))} of {count(capacity)}")
    else:
        caption.append("Slots in use: not told by this engine.")
    if len(live_times):
        drawn = low_and_high(live_times, live)
        trace = line(engine, *drawn, "%{y:,.0f} live tokens at %{x:.3~f} s", markers=False, line_shape="hv")
        trace.line.dash, trace.line.width = "solid", 2.0
        traces.append(trace)
        caption.append("Line: live tokens, from the client's record.")
        if run.summary.preemptions:
            caption.append("A preempted request counts as live though it holds no slots: the line can pass the area.")
        told.append(f"live tokens at most {count(float(live.max()))}")
    text = " ".join(caption) + _series_note(shortened, repeated) + _doubt([(engine, run)])
    y = axis("slots (tokens)", zero=True)
    if top:
        y["range"] = [0, 1.06 * top]
    title = f"KV use of {engine.name}"
    body = spec(traces, axis("time (s)", zero=True), y)
    return Figure(f"kv-{key}-{engine.index}", title, text, f"{title} over time: {'; '.join(told)}.", body, engine.index)


def _area(engine: Engine, times: Floats, slots: Floats) -> go.Scatter:
    red, green, blue = (int(engine.look.colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=rounded(times),
        y=rounded(slots),
        name=label(engine.name),
        mode="lines",
        fill="tozeroy",
        line={"color": engine.look.colour, "width": 0.8, "shape": "hv"},
        fillcolor=f"rgba({red},{green},{blue},0.22)",
        hovertemplate="%{y:,.0f} slots in use at %{x:.3~f} s<extra>%{fullData.name}</extra>",
        meta={"engine": engine.index},
    )


def _peak(run: RunData, live: Floats) -> float:
    """Highest value that the timeline of `run` shows."""
    _, used = gauge(run, "kv_usage")
    peak = float(live.max()) if len(live) else 0.0
    if len(used) and run.capacity_tokens is not None:
        peak = max(peak, float(used.max()) * run.capacity_tokens)
    return peak


def _series_note(shortened: bool, repeated: bool) -> str:
    note = ""
    if shortened:
        note += f" Drawn as lowest and highest sample of each of {MAX_SERIES_POINTS // 2} equal shares of the samples."
    if repeated:
        note += " Of repeated runs the last is shown, of valid ones where there are such."
    return note


def _doubt(runs: Sequence[tuple[Engine, RunData]]) -> str:
    doubted = [engine.name for engine, run in runs if not run.believable]
    return f" {DOUBTED.capitalize()}: {', '.join(doubted)}." if doubted else ""
