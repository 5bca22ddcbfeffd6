"""Histories as one offline page: a figure a metric, its runs in order, each step marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

import pabench
from pabench.analysis.history import History
from pabench.report.build import check_out, json_in_html, plotly, render_template, write_atomic
from pabench.report.figures import Figure, axis, spec
from pabench.report.palette import LOOKS
from pabench.report.reduce import rounded
from pabench.report.text import label

_DRAW = """
const figures = JSON.parse(document.getElementById("figure-data").textContent);
for (const [id, figure] of Object.entries(figures)) {
  Plotly.newPlot(id, figure.data, figure.layout, { displaylogo: false, responsive: true });
}
document.documentElement.dataset.ready = "yes";
"""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """What the template shows."""

    figures: tuple[Figure, ...]
    version: str = pabench.__version__


def write_history(found: Sequence[History], out: Path) -> None:
    """Write the page. Raises UsageError when `out` cannot be a file, PabenchError when it cannot be written."""
    check_out(out)
    page = HistoryPage(tuple(_figure(each, number) for number, each in enumerate(found)))
    figures = json_in_html({figure.id: figure.spec for figure in page.figures})
    write_atomic(out, render_template("history.html.j2", page, {"plotly": plotly(), "script": _DRAW}, figures=figures))


def _figure(each: History, number: int) -> Figure:
    """One history; a dashed line where it stepped. Engine-supplied text is made safe for plotly."""
    look = LOOKS[0]
    trace = go.Scatter(
        x=np.arange(1, len(each.points) + 1), y=rounded(np.asarray([point.value for point in each.points])),
        mode="lines+markers", line={"color": look.colour}, marker={"symbol": look.marker, "color": look.colour},
        text=[f"{label(point.version)}<br>{label(point.started_at)}" for point in each.points],
        hovertemplate="%{y:.4g}<br>%{text}<extra></extra>",
    )
    steps = [(each.points.index(step.after) + 0.5, step) for step in each.steps]
    dash = {"dash": "dash", "width": 1}
    shapes = [{"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": dash} for x, _ in steps]
    notes = [{"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False,
              "text": f"{step.ratio - 1:+.1%} {label(step.after.version)}"} for x, step in steps]
    made = spec([trace], axis("run, in the order of time"), axis(each.metric, zero=True), shapes=shapes,
                annotations=notes)
    made["layout"]["margin"]["t"] = 30
    told = "; ".join(step.text for step in each.steps) or "No step."
    return Figure(f"history-{number}", f"{each.label}, {each.load}: {each.metric}", told,
                  f"{each.metric} of {len(each.points)} runs. {told}", made)
