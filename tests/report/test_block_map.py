"""The block map: the right trace for each run, the right cells, and what was done to make them few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pabench.errors import UsageError
from pabench.report.block_figures import block_figures
from pabench.report.groups import sort_engines
from pabench.report.sources import read_sources
from pabench.report.view import make_page
from pabench.telemetry.block_map import UNKNOWN, block_map, state_shares
from pabench.telemetry.block_trace import State, read_block_trace
from tests.report.synthetic import HOSTILE, Made, write_run, write_trace


def unrolled(figure: Any) -> tuple[list[list[Any]], list[Any]]:
    """(kinds by row and column, kinds) of a figure's map."""
    told = figure.spec["data"][0]["meta"]["map"]
    rows = [[kind for at in range(0, len(row), 2) for kind in [row[at + 1]] * row[at]] for row in told["rows"]]
    return rows, told["kinds"]


def test_cells_show_owner_and_state_at_their_time(tmp_path: Path) -> None:
    trace = read_block_trace(write_trace(tmp_path / "t.blocks.jsonl", reserve_blocks=0))
    cells = block_map(trace, 1.0, 1.25, max_columns=250)  # a column a millisecond
    assert cells.state.shape == (250, 256)
    assert (cells.state[5, 10], cells.owner[5, 10]) == (State.FREE, -1)
    assert (cells.state[15, 10], cells.owner[15, 10]) == (State.PARTIAL, 3)
    assert cells.state[25, 10] == State.FULL
    assert (cells.state[105, 10], cells.owner[105, 10]) == (State.SHARED, 3)
    assert (cells.state[105, 20], cells.owner[105, 20]) == (State.PARTIAL, 4)
    assert (cells.state[155, 10], cells.owner[155, 10]) == (State.FULL, 4)
    assert [int(cells.state[205, block]) for block in (10, 11, 12, 20)] == [1, 1, 0, 0]


def test_a_reservation_is_empty_until_it_is_written(tmp_path: Path) -> None:
    trace = read_block_trace(write_trace(tmp_path / "t.blocks.jsonl", reserve_blocks=32))
    cells = block_map(trace, 1.0, 1.2, max_columns=200)
    assert [int((cells.state[85] == state).sum()) for state in (State.FULL, State.EMPTY)] == [4, 28]
    shares = state_shares(trace, 1.08, 1.15)
    assert shares[State.EMPTY] == pytest.approx(28 / 256)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_a_cell_of_many_shows_what_held_longest(tmp_path: Path) -> None:
    trace = read_block_trace(write_trace(tmp_path / "t.blocks.jsonl", reserve_blocks=32))
    coarse = block_map(trace, 1.0, 1.2, max_columns=2, max_rows=16)
    assert (coarse.blocks_per_row, coarse.state.shape) == (16, (2, 16))
    fine = block_map(trace, 1.0, 1.2, max_columns=2000)
    for column in range(2):
        for row in range(16):
            part = slice(1000 * column, 1000 * column + 1000), slice(16 * row, 16 * row + 16)
            keys = fine.state[part].astype(np.int64) + 256 * fine.owner[part]
            values, counts = np.unique(keys, return_counts=True)
            assert coarse.state[column, row] == values[counts.argmax()] % 256


def test_what_was_not_recorded_is_unknown_and_not_free(tmp_path: Path) -> None:
    trace = read_block_trace(write_trace(tmp_path / "t.blocks.jsonl", reserve_blocks=0, end=None))
    assert (trace.end, trace.end_s) == ("cut off", 1.2)
    cells = block_map(trace, -1.0, 3.0, max_columns=4)
    assert [bool((column == UNKNOWN).all()) for column in cells.state] == [True, False, False, True]
    assert state_shares(trace, 5.0, 6.0) == {}


def test_each_run_gets_the_trace_of_its_own_time_and_cache(tmp_path: Path) -> None:
    later = "2026-01-02T05:00:00+00:00"
    for made in (Made("a"), Made("b", reserve_tokens=512), Made("late", started_at=later)):
        write_run(tmp_path / "engine" / made.label, made)
    write_trace(tmp_path / "engine/load.blocks.jsonl", reserve_blocks=0)
    found = {run.summary.label: run.blocks for run in read_sources([tmp_path]).runs}
    assert [name for name, trace in found.items() if trace is not None] == ["a"]


def test_the_page_has_a_map_of_each_engine_on_one_time_axis(results: Path) -> None:
    page = make_page(read_sources([results / "paged", results / "contiguous", results / "silent"]))
    memory = page.groups[0].panes[-1].memory
    maps = [figure for figure in memory if figure.id.startswith("blocks-")]
    assert [figure.title for figure in maps] == ["Block map of reference paged", "Block map of reference contiguous"]
    assert len({tuple(figure.spec["layout"]["xaxis"]["range"]) for figure in maps}) == 1
    for figure in maps:
        rows, kinds = unrolled(figure)
        assert {len(row) for row in rows} == {600}
        assert len(rows) == 256
        assert all(0 <= kind < len(kinds) for row in rows for kind in row)
    texts = {text for figure in maps for _, text in unrolled(figure)[1]}
    assert {"free", "sequence 3 of request 2: reserved, nothing written", "sequence 3 of request 2: 16 tokens, full",
            "no owner, kept for the prefix cache", "shared by sequence 3 of request 2 and others"} <= texts
    assert "reserved and empty" in maps[1].caption
    assert "does not tell its exact start" in maps[0].caption


def test_a_cut_off_trace_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("a", requests=10))
    write_trace(tmp_path / "run/load.blocks.jsonl", reserve_blocks=0, end="limit")
    text = (tmp_path / "run/load.blocks.jsonl").read_text().replace('"s": 60.0', '"s": 1.2')
    (tmp_path / "run/load.blocks.jsonl").write_text(text)
    engines = sort_engines(read_sources([tmp_path]).runs, ())
    (figure,) = block_figures([(engines[0], engines[0].runs[0])], "0-0")
    assert "Recorded to 0.200 s, then the file had reached its limit." in figure.caption


@pytest.mark.parametrize(("old", "new", "says"), [
    ('"block_trace": 1', '"block_trace": 9', "no block trace of version 1"),
    ('"num_blocks": 256', '"num_blocks": 99999999', "not the header"),
    ('"blocks": [10]', '"blocks": [256]', "line 2: not a line of a block trace .*block 256 of 256"),
    ('"blocks": [10]', '"blocks": [-1]', "line 2"),
    ('"keep": 1', '"keep": 7', "line 4.*7 entries kept"),
    ('"s": 1.03', '"s": 0.5', "line 4.*behind"),
    ('"left": [{"seq": 3', '"left": [{"seq": 8', "line 11"),
    ('{"step": 2', '["step", 2', "line 3"),
])
def test_a_file_that_is_no_trace_is_one_clear_error(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = write_trace(tmp_path / "t.blocks.jsonl", reserve_blocks=0)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=says):
        read_block_trace(path)


def test_a_broken_trace_is_told_once_and_the_run_is_shown(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, Made(name, requests=10))
    write_trace(tmp_path / "load.blocks.jsonl", reserve_blocks=0, seq=HOSTILE)
    sources = read_sources([tmp_path])
    assert len(sources.runs) == 2
    assert len(sources.problems) == 1
    assert "load.blocks.jsonl, line 2" in sources.problems[0]
