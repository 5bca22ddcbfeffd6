"""The slowest requests, token by token."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd

from pabench.report.figures import Figure
from pabench.report.groups import Group, RunData, sort_engines, sort_groups
from pabench.report.slowest_figures import slowest_figures
from pabench.report.sources import read_sources
from pabench.report.view import make_page
from tests.report.synthetic import Made, write_run


def stalled(run: RunData) -> RunData:
    """The run with half a second in which request 3 stands still after its fifth token, and then is the last to end."""
    requests = run.requests.copy()
    row = requests.index[requests["index"] == 3][0]
    times = list(requests.at[row, "token_times_s"])
    last = [*times[:5], *(time + 0.5 for time in times[5:])]
    last += [last[-1] + 0.004 * step for step in range(1, 400)]
    requests.at[row, "token_times_s"] = last
    requests.loc[row, ["last_s", "end_s"]] = last[-1]
    telemetry = run.telemetry.copy()
    telemetry["preemptions"] = (telemetry["time_s"] > times[4] + 0.2).astype(float)
    return replace(run, requests=requests, telemetry=telemetry)


def group_of(runs: list[RunData]) -> Group:
    (group,) = sort_groups(sort_engines(runs, ()))
    return group


def only(folder: Path) -> Figure:
    (run,) = read_sources([folder]).runs
    (figure,) = slowest_figures(group_of([stalled(run)]), run.level)
    return figure


def test_the_slowest_come_first_each_from_its_intended_start(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("one", users=4, requests=24))
    (run,) = read_sources([tmp_path]).runs
    requests: pd.DataFrame = run.requests
    took = (requests["last_s"] - requests["intended_s"]).nlargest(5)
    (figure,) = slowest_figures(group_of([run]), 4)
    layout, data = figure.spec["layout"], figure.spec["data"]
    assert list(layout["yaxis"]["ticktext"]) == [f"#{requests.at[at, 'index']}" for at in took.index]
    *rows, ends = [trace for trace in data if trace["mode"] == "markers"]
    assert [trace["y"][-1] for trace in rows] == list(range(5))
    first = requests.loc[took.index[0]]
    assert abs(rows[0]["x"][0] - (first["first_s"] - first["intended_s"])) < 1e-4
    assert abs(rows[0]["x"][-1] - took.iloc[0]) < 1e-4
    assert len(rows[0]["x"]) == first["stream_tokens"]  # every token
    assert list(ends["x"][:2]) == [rows[0]["x"][0], rows[0]["x"][-1]]


def test_a_long_gap_bears_its_length_and_a_preemption_its_mark(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("one", users=4, requests=24))
    figure = only(tmp_path)
    (texts,) = [trace["text"] for trace in figure.spec["data"] if trace["mode"] == "text"]
    assert texts[0].startswith("▼ 0.5")
    assert "▼: meanwhile the engine counted a preemption" in figure.caption
    assert "#3 (ok): first token after" in figure.alt
    assert "longest gap 0.5" in figure.alt


def test_of_many_tokens_a_share_is_drawn_and_the_gap_stays(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("one", users=4, requests=24))
    figure = only(tmp_path)
    marks = next(trace["x"] for trace in figure.spec["data"] if trace["mode"] == "markers")
    assert len(marks) <= 130
    assert max(later - earlier for earlier, later in pairwise(marks)) > 0.5
    assert "an even share is drawn" in figure.caption


def test_engines_share_one_time_axis_and_stand_in_how_it_feels(results: Path) -> None:
    (view,) = make_page(read_sources([results])).groups
    for pane in view.panes:
        figures = [figure for figure in pane.feel if figure.id.startswith("slowest-")]
        assert len(figures) >= 2
        assert len({tuple(figure.spec["layout"]["xaxis"]["range"]) for figure in figures}) == 1
        assert len({figure.engine for figure in figures}) == len(figures)
