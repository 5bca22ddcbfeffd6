"""Prefix hits over time, from the engine's counters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pabench.report.groups import RunData, sort_engines, sort_groups
from pabench.report.memory_figures import memory_at_level, memory_by_load
from pabench.report.prefix_figures import hits_over_time
from pabench.report.sources import read_sources
from pabench.report.view import make_page
from tests.report.synthetic import Made, write_run


def counted(folder: Path, queries: list[float], hits: list[float]) -> RunData:
    """A run whose first scrapes tell these counters."""
    write_run(folder, Made("one", requests=8))
    (run,) = read_sources([folder]).runs
    telemetry = run.telemetry.head(len(queries)).copy()
    telemetry["prefix_queries"], telemetry["prefix_hits"] = queries, hits
    return replace(run, telemetry=telemetry, summary=replace(run.summary, prefix_hit_rate=0.5))


def test_hits_are_told_between_scrapes_and_a_fall_is_a_restart(tmp_path: Path) -> None:
    run = counted(tmp_path / "run", [100, 300, 300, 50], [0, 150, 150, 50])
    times, shares = hits_over_time(run)
    assert times.tolist() == run.telemetry["time_s"].tolist()[1:]
    assert np.array_equal(shares, [0.75, np.nan, 1.0], equal_nan=True)


def test_they_are_drawn_beside_the_use_and_by_load(tmp_path: Path) -> None:
    run = counted(tmp_path / "run", [0, 200, 400], [0, 0, 200])
    (group,) = sort_groups(sort_engines([run], ()))
    (figure,) = [figure for figure in memory_at_level(group, 8) if figure.id.startswith("prefix")]
    assert list(figure.spec["data"][0]["y"]) == [0, 100]
    (by_load,) = [figure for figure in memory_by_load(group) if figure.id.startswith("prefix")]
    assert list(by_load.spec["data"][0]["y"]) == [50]


def test_where_nobody_tells_of_a_look_up_that_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("one", requests=8))
    (view,) = make_page(read_sources([tmp_path])).groups
    assert not [figure for pane in view.panes for figure in pane.memory if figure.id.startswith("prefix")]
    assert any("no engine here tells of a look-up" in note for note in view.notes)
