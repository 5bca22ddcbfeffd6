"""How much load each engine takes: throughput against latency, and both against load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pabench.analysis.summary import Quantiles, RunSummary
from pabench.report.figures import Figure, axis, doubt_note, line, spec, wide
from pabench.report.groups import Engine, Group, RunData
from pabench.report.questions import useful_throughput
from pabench.report.reduce import Floats
from pabench.report.text import DOUBTED, count, number, percent

_MOST_TICKS = 10

Value = Callable[[RunSummary], float | None]


def load_figures(group: Group) -> list[Figure]:
    """Throughput-latency curves, then each quantity by load. Only what some engine of the group tells."""
    figures = [
        _against_throughput(group, "TTFT", lambda s: s.ttft_ms),
        _against_throughput(group, "TPOT", lambda s: s.tpot_ms),
        _throughput(group),
        _latency_by_load(group, "TTFT", lambda s: s.ttft_ms),
        _latency_by_load(group, "TPOT", lambda s: s.tpot_ms),
        by_load(group, "requests", "Requests by load", "requests/s", lambda s: s.request_rate_per_s,
                "Rate of requests completed."),
    ]
    return [figure for figure in figures if figure is not None]


def values(engine: Engine, value: Value) -> tuple[list[RunData], Floats]:
    """The runs that tell it, by level, and what they tell [runs]."""
    found = [(run, value(run.summary)) for run in engine.runs]
    known = [(run, number) for run, number in found if number is not None]
    return [run for run, _ in known], np.array([number for _, number in known], dtype=float)


def by_load(
    group: Group, key: str, title: str, unit: str, value: Value, caption: str, *, share: bool = False
) -> Figure | None:
    """One quantity by load, a line an engine; None where no engine tells it. `share`: 0..1, shown as per cent."""
    traces, told, silent, shown = [], [], [], []
    for engine in group.engines:
        runs, found = values(engine, value)
        if not runs:
            silent.append(engine.name)
            continue
        shown += runs
        hover = f"%{{x}} {_level(group)}<br>%{{y:.4~g}} {unit}"
        traces.append(line(engine, _levels(runs), 100 * found if share else found, hover, doubted=_doubted(runs)))
        told.append(f"{engine.name}: {_course(group, runs, found, percent if share else _in(unit))}")
    if not traces:
        return None
    caption += doubt_note(shown)
    if silent:
        caption += f" Not told by {', '.join(silent)}."
    x, y = _load_axis(group), axis(unit, zero=True)
    alt = f"Line chart of {title} by load. {'; '.join(told)}."
    return Figure(f"{key}-{group.index}", title, caption, alt, spec(traces, x, y))


def _throughput(group: Group) -> Figure | None:
    verified = all(r.summary.verified_tokens_per_s is not None for e in group.engines for r in e.runs)
    kind = "verified" if verified else "output"
    caption = f"Rate of {kind} tokens inside the steady window, by load."
    if not verified:
        caption += " Verified tokens alone where the workload has an oracle."
    return by_load(group, "throughput", "Throughput by load", "tokens/s", useful_throughput, caption)


def _latency_by_load(group: Group, name: str, pick: Callable[[RunSummary], Quantiles | None]) -> Figure | None:
    return _latency(group, f"{name.lower()}-load", name, pick, None)


def _against_throughput(group: Group, name: str, pick: Callable[[RunSummary], Quantiles | None]) -> Figure | None:
    return _latency(group, f"{name.lower()}-throughput", name, pick, useful_throughput)


def _latency(
    group: Group, key: str, name: str, pick: Callable[[RunSummary], Quantiles | None], x_value: Value | None
) -> Figure | None:
    """p50 (filled, heavy) and p99 (open, light) of a latency; x is throughput, or the load where `x_value` is None."""
    traces, told, all_values, shown = [], [], [], []
    x_name = "load" if x_value is None else "throughput"
    for engine in group.engines:
        runs = [run for run in engine.runs if pick(run.summary) is not None]
        shown += runs
        x = np.array([run.level if x_value is None else x_value(run.summary) for run in runs], dtype=float)
        for quantile, is_open in (("p50", False), ("p99", True)):
            y = np.array([getattr(pick(run.summary), quantile) for run in runs], dtype=float)
            if len(y) == 0:
                continue
            hover = f"{name} {quantile}: %{{y:.4~g}} ms<br>%{{x:.4~g}} {_x_unit(group, x_value)}"
            traces.append(line(engine, x, y, hover, name=quantile, open_marker=is_open, doubted=_doubted(runs)))
            all_values.append(y)
            told.append(f"{engine.name} {quantile}: {_course(group, runs, y, _in('ms'))}")
    if not traces:
        return None
    x_axis = _load_axis(group) if x_value is None else axis("throughput (tokens/s)", zero=True)
    y_axis = axis(f"{name} (ms)", log=wide(*all_values), zero=True)
    caption = f"Filled, heavy: p50. Open, light: p99.{' One point a run, joined in order of load.' if x_value else ''}"
    caption += doubt_note(shown)
    title = f"{name} against throughput" if x_value else f"{name} by load"
    alt = f"Line chart of {name} against {x_name}. {'; '.join(told)}."
    return Figure(f"{key}-{group.index}", title, caption, alt, spec(traces, x_axis, y_axis))


def _levels(runs: Sequence[RunData]) -> Floats:
    return np.array([run.level for run in runs], dtype=float)


def _doubted(runs: Sequence[RunData]) -> list[bool]:
    return [not run.believable for run in runs]


def _in(unit: str) -> Callable[[float], str]:
    return lambda value: f"{number(value)} {unit}"


def _course(group: Group, runs: Sequence[RunData], found: Floats, show: Callable[[float], str]) -> str:
    """First and last value in words."""
    ends = dict.fromkeys((0, len(runs) - 1))
    return ", ".join(f"{show(float(found[at]))} at {count(runs[at].level)} {_level(group)}"
                     f"{'' if runs[at].believable else f' ({DOUBTED})'}" for at in ends)


def _load_axis(group: Group) -> dict[str, Any]:
    """Logarithmic where the levels span a factor of eight, with a tick at each unless there are too many."""
    if group.levels[0] <= 0 or group.levels[-1] < 8 * group.levels[0]:
        return axis(group.level_name, zero=True)
    if len(group.levels) > _MOST_TICKS:
        return axis(group.level_name, log=True)
    return axis(group.level_name, log=True, dtick=None, tickvals=list(group.levels),
                ticktext=[number(level) if level % 1 else count(level) for level in group.levels])


def _level(group: Group) -> str:
    return "users" if group.kind == "users" else group.rate_unit


def _x_unit(group: Group, x_value: Value | None) -> str:
    return _level(group) if x_value is None else "tokens/s"
