"""What all figures share: the frame that a plotly figure stands in, and how an engine's line is made.

A figure is a plotly figure as JSON, with title, caption and a text that says the same to who cannot see it. Colours
of paper, text and grid are the page's and set by script.js, which knows the theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from pabench.report.groups import Engine, RunData
from pabench.report.reduce import Floats, rounded
from pabench.report.text import DOUBTED, label

_DOT = "#171b22"  # on every engine's colour


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the page. `engine` is the index of the only engine in it, None for a figure of several."""

    id: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]
    engine: int | None = None
    height: int = 300
    wide: bool = False      # takes a whole row


def line(
    engine: Engine,
    x: Floats,
    y: Floats,
    hover: str,
    *,
    name: str = "",
    open_marker: bool = False,
    markers: bool = True,
    doubted: Sequence[bool] = (),
    **more: Any,
) -> go.Scatter:
    """One line of `engine`. `hover` is plotly's template for the body of the hover text, of our words alone.

    `doubted`: which points are of runs that may not be believed; they and their hover texts are marked. The mark is a
    dot, in a filled one of another colour: filled and open stay what they are.
    """
    shape = engine.look.marker + ("-open" if open_marker else "")
    marker: str | list[str] = shape
    edge: dict[str, Any] = {"width": 1.6, "color": engine.look.colour}
    size: int | list[int] = 8
    if any(doubted):
        marker = [f"{shape}-dot" if doubt else shape for doubt in doubted]
        size = [11 if doubt else 8 for doubt in doubted]
        if not open_marker:
            edge["color"] = [_DOT if doubt else engine.look.colour for doubt in doubted]
        hover += "%{customdata}"
        more["customdata"] = [f"<br>{DOUBTED}" if doubt else "" for doubt in doubted]
    return go.Scatter(
        x=rounded(x),
        y=rounded(y),
        name=label(engine.name) + (f" {name}" if name else ""),
        mode="lines+markers" if markers else "lines",
        line={"color": engine.look.colour, "dash": engine.look.dash, "width": 1.4 if open_marker else 2.4},
        marker={"symbol": marker, "size": size, "color": engine.look.colour, "line": edge},
        hovertemplate=f"{hover}<extra>%{{fullData.name}}</extra>",
        meta={"engine": engine.index},
        **more,
    )


def doubt_note(runs: Iterable[RunData]) -> str:
    """What the mark means, for the caption of a figure that has a point for each of `runs`."""
    return "" if all(run.believable for run in runs) else f" With a dot inside: {DOUBTED}."


def axis(title: str, *, log: bool = False, zero: bool = False, **more: Any) -> dict[str, Any]:
    """One axis. `log` where values span more than a decade and a half; `zero`: it starts there."""
    if log:
        # Without a format plotly writes a bare 2 or 5 beside ticks between decades.
        return {"title": _title(title), "type": "log", "dtick": "D2", "tickformat": ",~r", **more}
    return {"title": _title(title), "rangemode": "tozero" if zero else "normal", **more}


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 12}, "standoff": 8}


def spec(traces: Sequence[Any], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> dict[str, Any]:
    """plotly's JSON of a figure, checked by plotly, without its default template."""
    figure = go.Figure(list(traces))
    figure.update_layout(
        template=None,
        xaxis={"automargin": True, "zeroline": False, **x},
        yaxis={"automargin": True, "zeroline": False, **y},
        margin={"l": 56, "r": 14, "t": 10, "b": 46},
        showlegend=False,
        separators=".\u202f",
        hoverlabel={"namelength": -1},
        **layout,
    )
    return figure.to_plotly_json()  # type: ignore[no-any-return]


def wide(*samples: Floats) -> bool:
    """Whether positive values span more than a decade and a half, so that a logarithmic axis reads better."""
    lows = [float(part[part > 0].min()) for part in samples if (part > 0).any()]
    highs = [float(part.max()) for part in samples if (part > 0).any()]
    return bool(lows) and max(highs) > 30 * min(lows)
