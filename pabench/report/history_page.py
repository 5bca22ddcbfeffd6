"""A history as one offline page: a figure a metric, its runs in order, each step marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pabench.analysis.history import History
from pabench.report.build import check_out, write_atomic
from pabench.report.palette import LOOKS
from pabench.report.text import label

_HEIGHT_PX = 260


def write_history(found: Sequence[History], out: Path) -> None:
    """Write the page. Raises UsageError when `out` cannot be a file, PabenchError when it cannot be written."""
    check_out(out)
    page = history_figure(found).to_html(full_html=True, include_plotlyjs=True)
    write_atomic(out, page.replace("<head>", '<head><meta name="viewport" content="width=device-width">'
                                             "<title>pabench history</title>", 1))


def history_figure(found: Sequence[History]) -> go.Figure:
    """One row a history; a dashed line where it stepped. Engine-supplied text is made safe for plotly."""
    titles = [f"{label(each.label)}, {label(each.load)}: {each.metric}" for each in found]
    figure = make_subplots(rows=max(1, len(found)), cols=1, subplot_titles=titles)
    for row, each in enumerate(found, start=1):
        x = list(range(1, len(each.points) + 1))
        figure.add_trace(go.Scatter(
            x=x, y=[point.value for point in each.points], mode="lines+markers", line={"color": LOOKS[0].colour},
            text=[f"{label(point.version)}<br>{label(point.started_at)}" for point in each.points],
            hovertemplate="%{y:.4g}<br>%{text}<extra></extra>",
        ), row=row, col=1)
        for step in each.steps:
            figure.add_vline(x=each.points.index(step.after) + 0.5, row=row, col=1, line_dash="dash",
                             annotation_text=label(f"{step.ratio - 1:+.1%} {step.after.version}"))
        figure.update_xaxes(title_text="run, in the order of time", row=row, col=1)
        figure.update_yaxes(rangemode="tozero", row=row, col=1)
    figure.update_layout(template="plotly_white", showlegend=False, height=_HEIGHT_PX * max(1, len(found)) + 80)
    return figure
