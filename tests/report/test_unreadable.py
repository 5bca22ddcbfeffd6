"""A file that is broken costs the report that file alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.report.sources import read_sources
from pabench.report.view import make_page
from tests.report.synthetic import Made, failing_rows, write_run, write_suite


def only_problem(top: Path) -> str:
    """The one problem of a report that still shows the run beside it."""
    page = make_page(read_sources([top]))
    assert [engine.name for engine in page.engines] == ["good"]
    (problem,) = page.problems
    return problem


@pytest.fixture
def top(tmp_path: Path) -> Path:
    write_run(tmp_path / "good", Made("good", requests=20))
    return tmp_path


def test_verdicts_cut_inside_a_character(top: Path) -> None:
    path = write_suite(top / "suite", failing_rows("ring position 39 → block 2"), exit_code=1) / "verdicts.jsonl"
    told = path.read_bytes()
    path.write_bytes(told[: told.index("→".encode()) + 1])
    assert "suite: verdicts.jsonl is not UTF-8" in only_problem(top)


def test_a_verdict_without_an_outcome(top: Path) -> None:
    path = write_suite(top / "suite", failing_rows(), exit_code=1) / "verdicts.jsonl"
    path.write_text(path.read_text().replace('"outcome": "FAIL", ', ""))
    assert "a case without an outcome" in only_problem(top)
