"""What may not be believed, or not be compared, is marked or left out wherever the report shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.load.manifest import CacheCheck, read_manifest
from pabench.report.conditions import conditions
from pabench.report.feel_figures import feel_figures
from pabench.report.figures import Figure
from pabench.report.groups import Group, sort_engines, sort_groups
from pabench.report.headline import sentences, tiles
from pabench.report.load_figures import load_figures
from pabench.report.memory_figures import memory_at_level, memory_by_load
from pabench.report.sources import read_sources
from pabench.report.text import DOUBTED
from pabench.report.view import make_page
from tests.report.synthetic import Made, write_run


def groups_of(folder: Path) -> tuple[Group, ...]:
    sources = read_sources([folder])
    return sort_groups(sort_engines(sources.runs, sources.suites))


def by_id(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.id.split("-")[0]: figure for figure in figures}


def write_repeats(top: Path) -> None:
    """Two believable runs, and between them in time one that was broken off, ten times as slow."""
    for number, status in enumerate(("complete", "complete", "interrupted")):
        slower = 10.0 if status == "interrupted" else 1.0
        write_run(top / str(number), Made("one", requests=40, seed=number, status=status, slower=slower,
                                          started_at=f"2026-01-02T0{3 + number}:00:00+00:00"))


def test_doubtful_runs_are_not_pooled_with_believable_ones(tmp_path: Path) -> None:
    write_repeats(tmp_path)
    (group,) = groups_of(tmp_path)
    tpot = by_id(feel_figures(group, 8))["tpot"]
    slow = group.engines[0].runs[-1].summary.tpot_ms
    assert slow is not None
    assert max(tpot.spec["data"][0]["y"]) < slow.p50 / 2
    assert "80 requests" in tpot.caption
    assert f"Left out as {DOUBTED}: 1" in tpot.caption


def test_where_there_is_nothing_better_the_doubt_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("cut", status="interrupted"))
    (group,) = groups_of(tmp_path)
    for figure in (*feel_figures(group, 8), *memory_at_level(group, 8)):
        assert "Not a valid, complete run" in figure.caption, figure.id


def test_over_time_the_last_believable_run_is_shown(tmp_path: Path) -> None:
    write_repeats(tmp_path)
    (group,) = groups_of(tmp_path)
    shown = group.engines[0].runs[1].manifest.duration_s
    assert shown is not None
    running = by_id(memory_at_level(group, 8))["running"]
    assert max(running.spec["data"][0]["x"]) <= shown


def test_a_doubtful_point_is_marked_and_explained(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("one", users=2))
    write_run(tmp_path / "b", Made("one", users=8, status="interrupted"))
    (group,) = groups_of(tmp_path)
    figures = [*load_figures(group), *memory_by_load(group)]
    assert len(figures) >= 6
    for figure in figures:
        assert f"With a dot inside: {DOUBTED}." in figure.caption
        for trace in figure.spec["data"]:
            sound, doubted = trace["marker"]["symbol"]
            assert sound in ("circle", "circle-open")
            assert doubted == f"{sound}-dot"  # an INVALID p50 stays filled, and its p99 open
            assert list(trace["customdata"]) == ["", f"<br>{DOUBTED}"]
            assert "%{customdata}<extra>" in trace["hovertemplate"]
        assert f"8 users ({DOUBTED})" in figure.alt


def test_believable_points_bear_no_mark(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("one"))
    (group,) = groups_of(tmp_path)
    assert not any("With a dot" in figure.caption for figure in load_figures(group))


@pytest.mark.parametrize("doubted", [("slow",), ("fast", "slow")])
def test_no_factor_against_a_run_that_may_not_be_believed(tmp_path: Path, doubted: tuple[str, ...]) -> None:
    for name, slower in (("fast", 1.0), ("slow", 2.0)):
        write_run(tmp_path / name, Made(name, slower=slower, status="interrupted" if name in doubted else "complete"))
    (group,) = groups_of(tmp_path)
    made = tiles(group)
    assert not sentences(made)
    assert not any(tile.factor for tile in made)
    assert made[0].bars[1].note == DOUBTED
    assert "fewer than two engines have a valid" in make_page(read_sources([tmp_path])).groups[0].nothing


def test_what_a_gate_set_aside_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline" / "1", Made("one"))
    aside = write_run(tmp_path / "set-aside" / "baseline" / "2", Made("one", status="interrupted"))
    assert [run.summary.status for run in read_sources([tmp_path]).runs] == ["complete"]
    assert len(read_sources([aside.parent]).runs) == 1


@pytest.mark.parametrize("stated", [0, 1])
def test_runs_with_and_without_a_stated_cache_are_told_together(tmp_path: Path, stated: int) -> None:
    for number in range(2):
        folder = write_run(tmp_path / str(number), Made("one", requests=8, seed=number))
        if number == stated:
            check = CacheCheck(stated="cold", checked=8, broken=None)
            read_manifest(folder).model_copy(update={"cache": check}).write(folder)
    same, differing = conditions(sort_engines(read_sources([tmp_path]).runs, []))
    assert same is not None
    (by_run,) = [table for table in differing if table.id == "differing"]
    assert "cache · stated" in [column.title for column in by_run.columns]
