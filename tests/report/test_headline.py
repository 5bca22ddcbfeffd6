"""The headline: whose runs choose the loads, what chance may have made, and what is not known."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from pabench.report.groups import Group, RunData, sort_engines, sort_groups
from pabench.report.headline import NOT_TOLD, Tile, sentences, tiles
from pabench.report.memory_figures import memory_by_load
from pabench.report.questions import AT_MOST
from pabench.report.ratios import ratios_table
from pabench.report.run_tables import key_table
from pabench.report.sources import read_sources
from pabench.report.text import DOUBTED
from tests.report.synthetic import HOSTILE, Made, write_run


def group_of(folder: Path) -> Group:
    (group,) = sort_groups(sort_engines(read_sources([folder]).runs, ()))
    return group


def by_title(group: Group) -> dict[str, Tile]:
    return {tile.title: tile for tile in tiles(group)}


def ratios(group: Group) -> dict[tuple[str, str], list[str]]:
    found = ratios_table(group)
    assert found is not None
    return {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in found.rows}


def test_an_engine_without_a_valid_run_takes_no_load_from_the_others(tmp_path: Path) -> None:
    """As published: one engine INVALID at every load, one at the lowest alone; the others' runs stand."""
    for users in (2, 8, 24):
        write_run(tmp_path / f"a{users}", Made("a", users=users))
        write_run(tmp_path / f"b{users}", Made("b", users=users, slower=2.0, tells_memory=False,
                                               status="interrupted" if users == 2 else "complete"))
        write_run(tmp_path / f"c{users}", Made("c", users=users, status="interrupted"))
    throughput = by_title(group_of(tmp_path))["Throughput"]
    assert [bar.note for bar in throughput.bars] == ["", "", DOUBTED]
    assert throughput.winner == "as much with a"
    assert throughput.scope == "best over 8 users and 24 users"
    assert throughput.basis == "one run each"


def test_what_is_not_told_is_not_called_invalid(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("a"))
    write_run(tmp_path / "b", Made("b", tells_memory=False, status="interrupted"))
    utilisation = by_title(group_of(tmp_path))["Effective utilisation"].bars[1]
    assert (utilisation.text, utilisation.note) == ("–", NOT_TOLD)


def test_one_run_each_crowns_no_winner_below_what_chance_makes(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("a"))
    write_run(tmp_path / "b", Made("b", slower=1.15))
    group = group_of(tmp_path)
    throughput = by_title(group)["Throughput"]
    assert (throughput.factor, throughput.winner) == ("not told", "1.14×, which may be chance")
    assert "a and b are not told apart in throughput" in " ".join(sentences(tiles(group)))
    assert "one run each" in throughput.claim
    assert ratios(group)["b", "Throughput"] == ["0.88× (one run each)"]


def test_repeats_bring_an_interval_as_compare_has_it(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path / f"a{seed}", Made("a", seed=seed))
        write_run(tmp_path / f"b{seed}", Made("b", seed=seed, slower=1.15))
    group = group_of(tmp_path)
    throughput = by_title(group)["Throughput"]
    assert throughput.winner == "as much with a"
    assert throughput.basis.startswith("95 %: 1.")
    assert throughput.basis.endswith(", 4 runs each")
    assert "(95 %: 0." in ratios(group)["b", "Throughput"][0]


def write_turns(folder: Path, *, starts: int, runs: int) -> Group:
    """Two engines as `gate run --turns` leaves them: each start carried `runs` loads, and is a little slower than the
    one before.
    """
    for label, slower in (("a", 1.0), ("b", 1.15)):
        for seed in range(starts * runs):
            at = seed // runs
            write_run(folder / f"{label}{seed}", Made(label, seed=seed, slower=slower * (1 + 0.1 * at),
                                                      engine_started_at=f"{label}, start {at}"))
    return group_of(folder)


def test_runs_of_one_start_are_one_sample(tmp_path: Path) -> None:
    throughput = by_title(write_turns(tmp_path, starts=3, runs=2))["Throughput"]
    assert throughput.basis.startswith("95 %: ")
    assert throughput.basis.endswith(", 3 starts each")


def test_one_start_each_crowns_no_winner_whatever_it_ran(tmp_path: Path) -> None:
    throughput = by_title(write_turns(tmp_path, starts=1, runs=4))["Throughput"]
    assert (throughput.factor, throughput.basis) == ("not told", "one start each")


def test_repeats_that_differ_by_chance_crown_nobody(tmp_path: Path) -> None:
    for seed, (one, other) in enumerate(((1.0, 1.9), (1.0, 0.8), (1.0, 1.6), (1.0, 0.9))):
        write_run(tmp_path / f"a{seed}", Made("a", seed=seed, slower=one))
        write_run(tmp_path / f"b{seed}", Made("b", seed=seed, slower=other))
    throughput = by_title(group_of(tmp_path))["Throughput"]
    assert throughput.factor == "not told"
    assert "may be chance" in throughput.winner


def test_every_load_is_told_where_the_best_hides_who_leads(tmp_path: Path) -> None:
    for users, slower in ((2, 0.5), (24, 2.0)):
        write_run(tmp_path / f"a{users}", Made("a", users=users))
        write_run(tmp_path / f"b{users}", Made("b", users=users, slower=slower))
    group = group_of(tmp_path)
    tile = by_title(group)["Throughput"]
    low, high = (part.split("×")[0] for part in tile.each.split(", "))
    assert float(low) < 1 < float(high)
    assert tile.each.endswith("at 24 users")
    assert tile.each in " ".join(sentences(tiles(group)))
    assert len(ratios(group)["b", "Throughput"]) == 2


def test_a_ratio_to_a_doubted_run_is_not_given(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("a"))
    write_run(tmp_path / "b", Made(HOSTILE, status="interrupted"))
    assert {cell for cells in ratios(group_of(tmp_path)).values() for cell in cells} == {"not valid"}


def preempted(run: RunData, *, split: bool) -> RunData:
    return replace(run, summary=replace(run.summary, preemptions=9.0, waste=run.summary.waste if split else None))


def test_utilisation_is_the_engines_own_where_told_and_a_bound_where_preempted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("a"))
    write_run(tmp_path / "b", Made("b", reserve_tokens=512))
    runs = read_sources([tmp_path]).runs
    waste = runs[0].summary.waste
    assert waste is not None
    assert runs[0].summary.utilisation == pytest.approx(waste.token_states / (1 - waste.free))
    (exact,) = sort_groups(sort_engines([preempted(run, split=True) for run in runs], ()))
    assert [bar.note for bar in by_title(exact)["Effective utilisation"].bars] == ["", ""]
    (black,) = sort_groups(sort_engines([preempted(run, split=False) for run in runs], ()))
    bars = by_title(black)["Effective utilisation"].bars
    assert all(bar.text.startswith("≤ ") and bar.note == AT_MOST for bar in bars)
    assert not by_title(black)["Effective utilisation"].factor
    (column,) = [at for at, each in enumerate(key_table(black.engines).columns) if each.key == "utilisation_share"]
    cell = key_table(black.engines).rows[0][column]
    assert (cell.text[:2], cell.hint, cell.raw) == ("≤ ", AT_MOST, black.engines[0].runs[0].summary.utilisation)
    for told, group in ((False, exact), (True, black)):
        rows = csv.DictReader(io.StringIO(key_table(group.engines).csv))
        assert [row["utilisation_is_bound"] for row in rows] == [str(told)] * 2
    (caption,) = [figure.caption for figure in memory_by_load(black) if figure.id.startswith("utilisation")]
    assert "At most, of a, b:" in caption
    assert "with prefixes that requests share counted once" in caption
