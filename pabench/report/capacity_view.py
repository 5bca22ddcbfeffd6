"""Searches for a capacity: the share of requests in time against the rate, and what was concluded, an engine a line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from pabench.analysis.slo import SLO
from pabench.capacity import Search, Tried
from pabench.report.figures import Figure, axis, line, spec, wide
from pabench.report.groups import Engine, Group
from pabench.report.reduce import rounded
from pabench.report.tables import Cell, Column, Table, table, words
from pabench.report.text import count, number, percent
from pabench.telemetry.vocabulary import UNKNOWN

_ASKED = "#888888"  # in sight on both themes, and no engine's
_MARKS = {"inside": "", "outside": "-open", "undecided": "-open-dot"}
_TONES = {"inside": "good", "outside": "bad", "undecided": "muted"}
_ENGINE = Column("engine", "Engine", numeric=False)
_OF_FOUND = (Column("conclusion", "Conclusion", numeric=False), Column("slo", "In time", numeric=False))
_OF_TRIED = (
    Column("in_time_share", "In time", "%"), Column("low_share", "Low", "%"), Column("high_share", "High", "%"),
    Column("requests", "Requests"), Column("verdict", "Verdict", numeric=False),
)
_Found = Sequence[tuple[Engine, Search]]


def searches_of(group: Group, searches: Sequence[Search]) -> list[tuple[Engine, Search]]:
    """The searches whose runs the group holds, in the order of its engines."""
    return [(engine, search) for engine in group.engines for search in searches
            if (search.label, search.workload, "rate") == (engine.name, group.workload, group.kind)]


def conclusions(group: Group, found: _Found) -> Table | None:
    """One row a search; None where nothing was searched."""
    rows = [[words(engine.name, engine=engine.index), _rate(search.capacity.inside), _rate(search.capacity.outside),
             words(search.text), words(search.slo.text)] for engine, search in found]
    rates = (Column("inside_per_s", "Highest rate inside", group.rate_unit),
             Column("outside_per_s", "Lowest rate outside", group.rate_unit))
    return table(f"capacities-{group.index}", "Capacity", (_ENGINE, *rates, *_OF_FOUND), rows) if rows else None


def capacity_figures(group: Group, found: _Found) -> list[Figure]:
    """One figure for each meaning of in time."""
    return [_figure(f"capacity-{group.index}-{number}", slo, alike, group.rate_unit)
            for number, (slo, alike) in enumerate(_by_slo(found))]


def tried_tables(group: Group, found: _Found) -> list[Table]:
    """Every rate that was tried, a table for each meaning of in time."""
    return [table(f"tried-{group.index}-{number}",
                  f"Every rate that was tried: {slo.text}, Wilson's {_intervals(alike)} intervals",
                  (_ENGINE, Column("rate_per_s", "Rate", group.rate_unit), *_OF_TRIED),
                  [_tried(engine, each) for engine, search in alike for each in _by_rate(search)])
            for number, (slo, alike) in enumerate(_by_slo(found))]


def _by_slo(found: _Found) -> list[tuple[SLO, _Found]]:
    slos = dict.fromkeys(search.slo for _, search in found)
    return [(slo, [pair for pair in found if pair[1].slo == slo]) for slo in slos]


def _intervals(found: _Found) -> str:
    return " and ".join(dict.fromkeys(f"{100 * search.confidence:g} %" for _, search in found))


def _figure(id: str, slo: SLO, found: _Found, unit: str) -> Figure:
    traces = [_course(engine, search, unit) for engine, search in found]
    rates = np.array([each.rate_per_s for _, search in found for each in search.capacity.tried])
    ends = [float(rates.min()), float(rates.max())]
    traces.append(go.Scatter(x=ends, y=[100 * slo.share] * 2, mode="lines", line={"color": _ASKED, "dash": "dot"},
                             hoverinfo="skip", name="asked for"))
    told = "; ".join(f"{engine.name}: {search.text}" for engine, search in found)
    caption = (f"In time: {slo.bounds_text}. Filled: surely at least {slo.share:.0%} of requests; open: surely fewer; "
               f"with a dot: undecided. Bars: Wilson's {_intervals(found)} intervals. Dotted: the share asked for.")
    x = axis(f"offered load ({unit})", log=wide(rates))
    return Figure(id, "Capacity: requests in time by load", caption,
                  f"Line chart of the share of requests with {slo.bounds_text} by load. {told}.",
                  spec(traces, x, axis("requests in time (%)", range=[-2, 102])))


def _course(engine: Engine, search: Search, unit: str) -> go.Scatter:
    tried = _by_rate(search)
    shares, low, high = (100 * np.array(values) for values in zip(
        *((each.attained.share, each.low, each.high) for each in tried), strict=True))
    hover = f"%{{x:.4~g}} {unit}: %{{y:.4~g}} % in time, %{{customdata}}"
    rates = np.array([each.rate_per_s for each in tried])
    drawn = line(engine, rates, shares, hover, customdata=[_tried_text(each) for each in tried], error_y={
        "type": "data", "symmetric": False, "array": rounded(high - shares), "arrayminus": rounded(shares - low),
        "color": engine.look.colour, "thickness": 1.2, "width": 3})
    drawn.marker.symbol = [engine.look.marker + _MARKS[each.verdict] for each in tried]
    return drawn


def _tried_text(tried: Tried) -> str:
    return f"{tried.verdict}<br>{tried.low:.1%} to {tried.high:.1%}, of {tried.attained.total} requests"


def _by_rate(search: Search) -> list[Tried]:
    return sorted(search.capacity.tried, key=lambda tried: tried.rate_per_s)


def _tried(engine: Engine, tried: Tried) -> list[Cell]:
    shares = (tried.attained.share, tried.low, tried.high)
    total = tried.attained.total
    return [words(engine.name, engine=engine.index), _rate(tried.rate_per_s),
            *(Cell(_percent(share), share) for share in shares), Cell(count(total), total),
            words(tried.verdict, _TONES[tried.verdict])]


def _percent(share: float) -> str:
    return percent(share).removesuffix("%").rstrip()


def _rate(rate: float | None) -> Cell:
    return Cell(UNKNOWN, None, hint="none was found") if rate is None else Cell(number(rate), rate)
