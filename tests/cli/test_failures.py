"""Why requests failed, and what else a reader of a run must know, stands wherever the run is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pabench.analysis.failures import failed_ways
from pabench.analysis.sides import read_run
from pabench.analysis.summary import Validity
from pabench.report.groups import sort_engines
from pabench.report.run_tables import key_table
from pabench.report.sources import read_sources
from pabench.report.view import make_page
from pabench.terminal.runs import show_summaries
from tests.cli.conftest import Run, stub_of
from tests.report.synthetic import HOSTILE, Made, write_run


def test_a_run_tells_why_requests_failed(pabench_here: Run, tmp_path: Path) -> None:
    with stub_of(tmp_path, "--status", "429", ttft_ms=1, itl_ms=1) as stub:
        done = pabench_here("run", "--url", stub.url, "--workload", "text", "--users", "2", "--num-requests", "4",
                            "--out", "run", "--quiet")
    assert done.returncode == 1, done.stderr
    assert "4 x HTTP 429: " in done.stdout
    assert "4 x HTTP 429: " in (tmp_path / "run" / "run.log").read_text()
    assert "4 x HTTP 429: " in pabench_here("results", "show", "run").stdout
    (told,) = json.loads(pabench_here("results", "show", "run", "--json").stdout)
    (way,) = told["failures"]
    assert (way["count"], way["outcome"], way["kind"], way["status"]) == (4, "error", "http", 429)
    assert way["said"]


def test_a_run_tells_the_notes_of_its_manifest(pabench_here: Run, tmp_path: Path) -> None:
    with stub_of(tmp_path, "--max-model-len", "100", ttft_ms=1, itl_ms=1) as stub:
        command = ("run", "--url", stub.url, "--workload", "text", "--users", "2", "--num-requests", "4", "--quiet")
        done = pabench_here(*command, "--out", "run")
        (told,) = json.loads(pabench_here(*command, "--out", "again", "--json").stdout)
    assert "4 of 4 requests made shorter by the engine's context" in " ".join(done.stdout.split())
    assert told["notes"] == json.loads((tmp_path / "again" / "manifest.json").read_text())["notes"]
    shown = " ".join(pabench_here("results", "show", "run").stdout.split())
    assert shown.count("4 of 4 requests made shorter by the engine's context") == 1


def test_ways_are_counted_and_the_rare_ones_left_out(tmp_path: Path) -> None:
    said = ("boom\x1b[31m",) * 2 + tuple(f"case {number}" for number in range(6))
    summary = read_run(write_run(tmp_path / "run", Made("one", requests=16, errors=said))).summary
    assert [way.text for way in summary.failures[:2]] == ["2 x stream: boom [31m", "1 x stream: case 0"]
    assert (len(summary.failures), summary.other_failures) == (5, 2)
    assert json.loads(json.dumps(summary.outcomes))["error"] == 8


def test_what_nothing_was_said_of_is_told_by_its_kind() -> None:
    rows = pd.DataFrame({
        "outcome": ["timeout", "error", "ok", "aborted"], "error_kind": [None, "http", None, "planned"],
        "http_status": [None, 500, 200, 200], "error_text": [None, "HTTP 500", None, None]})
    assert [way.text for way in failed_ways(rows)] == ["1 x timeout", "1 x HTTP 500"]
    assert failed_ways(rows[rows["outcome"] == "ok"]) == ()


def test_hostile_errors_are_shown_and_not_followed(pabench_here: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("one", requests=16, errors=(HOSTILE + "[/bold]\x1b[2J",) * 2))
    shown = pabench_here("results", "show", "run").stdout
    assert "2 x stream: " in shown
    assert "[/bold]" in shown
    assert not {"\x1b", "\u202e"} & set(shown)


def test_why_a_run_is_invalid_does_not_steer_what_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = read_sources([write_run(tmp_path / "run", Made("one", requests=16))]).runs
    invalid = replace(run.summary, validity=Validity(False, (f"{HOSTILE}\x1b[2J",)))
    show_summaries([invalid])
    shown = capsys.readouterr().out
    assert "INVALID one, 8 users: %{x}<img" in shown
    (engine,) = sort_engines([replace(run, summary=invalid)], ())
    (valid,) = [cell for cell in key_table([engine]).rows[0] if cell.text == "not valid"]
    assert "<img" in valid.hint
    assert not {"\x1b", "\u202e"} & {*shown, *valid.hint}


def test_the_report_has_a_table_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "well", Made("well", requests=16))
    assert make_page(read_sources([tmp_path])).failed is None
    write_run(tmp_path / "ill", Made("ill", requests=16, errors=("=boom", "=boom", *map(str, range(5)))))
    table = make_page(read_sources([tmp_path])).failed
    assert table is not None
    assert [cell.text for cell in table.rows[0]] == ["ill", "8 users", "2", "stream", "=boom"]
    assert [cell.text for cell in table.rows[-1]] == ["ill", "8 users", "1", "in other ways", "–"]
    assert '"ill","8 users",2,"stream","\'=boom"' in table.csv
