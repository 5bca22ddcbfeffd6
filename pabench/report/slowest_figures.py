"""The slowest requests of a load, token by token: how long each waited, how it went on, and where it stood still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from pabench.report.figures import Figure, axis, spec
from pabench.report.groups import Engine, Group, RunData, believed
from pabench.report.reduce import Floats, rounded
from pabench.report.series import gauge
from pabench.report.text import DOUBTED, count, label, number

_ROWS = 5
_MAX_TICKS = 120        # tokens drawn of one request
_LONG = 4.0             # times a request's median gap
_LABELLED = 3           # longest gaps of a request that bear their length, at most
_APART = 0.13           # of the axis: lengths that stand closer would overlap on a phone
_MARK = 12              # height of a token's mark, pixels


@dataclass(frozen=True, slots=True)
class _Slow:
    """One request. Seconds from its intended start; `times`: of its chunks with tokens, ascending. `gaps`: the places
    in `times` before its long gaps, the longest first; `preempted`: whether a preemption was counted during each.
    """

    index: int
    outcome: str
    tokens: int
    times: Floats
    gaps: tuple[int, ...]
    preempted: tuple[bool, ...]

    @property
    def text(self) -> str:
        """In words."""
        longest = f", longest gap {number(self.gap_s(self.gaps[0]))} s" if self.gaps else ""
        return (f"#{self.index} ({self.outcome}): first token after {number(self.times[0])} s, last of "
                f"{count(self.tokens)} after {number(self.times[-1])} s{longest}")

    def gap_s(self, place: int) -> float:
        """Length of the gap after chunk `place`."""
        return float(self.times[place + 1] - self.times[place])


def slowest_figures(group: Group, level: float) -> list[Figure]:
    """One figure an engine, all on one time axis."""
    runs = [(engine, believed(group.at(engine, level))[-1]) for engine in group.engines if group.at(engine, level)]
    slow = [(engine, run, _slowest(run)) for engine, run in runs]
    slow = [each for each in slow if each[2]]
    longest = max((float(one.times[-1]) for _, _, found in slow for one in found), default=0.0)
    key = f"{group.index}-{group.levels.index(level)}"
    return [_figure(engine, run, found, key, longest) for engine, run, found in slow]


def _slowest(run: RunData) -> list[_Slow]:
    """Those whose last token came longest after their intended start."""
    told = run.requests.dropna(subset=["first_s", "last_s"])
    order = (told["last_s"] - told["intended_s"]).nlargest(_ROWS).index
    return [_slow(told.loc[at], run) for at in order]


def _slow(request: pd.Series, run: RunData) -> _Slow:
    arrived = np.asarray(request["token_times_s"], dtype=np.float64)
    clock = np.unique(arrived if len(arrived) else [request["first_s"], request["last_s"]])
    gaps = np.diff(clock)
    places = np.empty(0, dtype=np.int64)
    if len(gaps):
        usual = 0.0 if run.summary.itl_ms is None else run.summary.itl_ms.p99 / 1e3
        places = np.flatnonzero((gaps >= _LONG * np.median(gaps)) & (gaps > usual))
        places = places[np.argsort(-gaps[places], kind="stable")]
    lost = _preemptions(run)
    during = tuple(any(start < clock[at + 1] and end > clock[at] for start, end in lost) for at in places)
    return _Slow(int(request["index"]), str(request["outcome"]), len(arrived), clock - float(request["intended_s"]),
                 tuple(places.tolist()), during)


def _preemptions(run: RunData) -> list[tuple[float, float]]:
    """Spans between two scrapes in which the engine counted a preemption, of whichever request."""
    times, counted = gauge(run, "preemptions")
    rises = np.flatnonzero(np.diff(counted) > 0)
    return [(float(times[at]), float(times[at + 1])) for at in rises]


def _figure(engine: Engine, run: RunData, slow: Sequence[_Slow], key: str, longest: float) -> Figure:
    traces = [_waits(engine, slow), *(_tokens(engine, row, one) for row, one in enumerate(slow)),
              _ends(engine, slow), *_gaps(engine, slow, longest)]
    rows = {"autorange": False, "range": [len(slow) - 0.4, -0.7], "tickvals": list(range(len(slow))),
            "ticktext": [f"#{one.index}" for one in slow]}
    body = spec(traces, axis("s after the intended start", range=[-0.01 * longest, 1.03 * longest]),
                axis("request") | rows)
    title = f"Slowest requests of {engine.name}"
    alt = f"{title}, token by token. {'; '.join(one.text for one in slow)}."
    return Figure(f"slowest-{key}-{engine.index}", title, _caption(engine, run, slow), alt, body, engine.index,
                  height=76 + 34 * len(slow), wide=True)


def _caption(engine: Engine, run: RunData, slow: Sequence[_Slow]) -> str:
    ended = int(run.requests["last_s"].notna().sum())
    caption = (f"The {count(len(slow))} whose last token came latest after their intended start, of {count(ended)}, "
               f"by their place in the schedule. Dotted: until the first token (ring). A bar a token; a dot for the "
               f"last. With its length: a gap of at least {_LONG:g} times the request's median gap that is longer than "
               f"99 % of the run's; the longest of each, at most {_LABELLED}.")
    if any(any(one.preempted) for one in slow):
        caption += " ▼: meanwhile the engine counted a preemption; of which request it does not tell."
    elif len(gauge(run, "preemptions")[0]) == 0 and "preemptions" not in run.summary.not_applicable:
        caption += " Preemptions: not told by this engine."
    if max(len(one.times) for one in slow) > _MAX_TICKS:
        caption += f" Of more than {_MAX_TICKS} arrivals an even share is drawn, and both ends of each such gap."
    return caption + ("" if run.believable else f" {DOUBTED.capitalize()}: {engine.name}.")


def _waits(engine: Engine, slow: Sequence[_Slow]) -> go.Scatter:
    """From the intended start to the first token."""
    x: list[float | None] = []
    y: list[int | None] = []
    for row, one in enumerate(slow):
        x += [0.0, *rounded(one.times[:1]), None]
        y += [row, row, None]
    return _trace(engine, x=x, y=y, mode="lines", line={"width": 2, "dash": "dot"}, hoverinfo="skip")


def _tokens(engine: Engine, row: int, one: _Slow) -> go.Scatter:
    """A bar each."""
    keep = np.linspace(0, len(one.times) - 1, min(len(one.times), _MAX_TICKS)).astype(np.int64)
    keep = np.union1d(keep, [end for place in one.gaps[:_LABELLED] for end in (place, place + 1)]).astype(np.int64)
    marker = {"symbol": "line-ns-open", "size": _MARK, "color": engine.look.colour, "line": {"width": 1.2}}
    return _trace(engine, x=rounded(one.times[keep]), y=[row] * len(keep), mode="markers", marker=marker,
                  hovertemplate=f"#{one.index}: %{{x:.4~f}} s<extra></extra>")


def _ends(engine: Engine, slow: Sequence[_Slow]) -> go.Scatter:
    """A ring for the first token, a dot for the last."""
    x = [end for one in slow for end in rounded(one.times[[0, -1]])]
    marker = {"symbol": ["circle-open", "circle"] * len(slow), "size": 9, "color": engine.look.colour,
              "line": {"width": 1.6, "color": engine.look.colour}}
    return _trace(engine, x=x, y=np.repeat(range(len(slow)), 2).tolist(), mode="markers", marker=marker,
                  hoverinfo="skip")


def _gaps(engine: Engine, slow: Sequence[_Slow], longest: float) -> list[go.Scatter]:
    """The lengths of the longest gaps, above them."""
    x, y, texts = [], [], []
    for row, one in enumerate(slow):
        placed: list[float] = []
        for place, lost in zip(one.gaps, one.preempted, strict=True):
            middle = float(one.times[place] + one.times[place + 1]) / 2
            if len(placed) < _LABELLED and all(abs(middle - other) >= _APART * longest for other in placed):
                placed.append(middle)
                texts.append(f"{'▼ ' if lost else ''}{number(one.gap_s(place), 2)} s")
        x += placed
        y += [row - 0.36] * len(placed)
    return [_trace(engine, x=rounded(np.array(x)), y=y, mode="text", text=texts, textfont={"size": 11},
                   hoverinfo="skip")] if x else []


def _trace(engine: Engine, *, line: dict[str, Any] | None = None, **more: Any) -> go.Scatter:
    return go.Scatter(name=label(engine.name), meta={"engine": engine.index},
                      line={"color": engine.look.colour, **(line or {})}, **more)
