"""A file that is broken costs the report that file alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pabench.report.sources import read_sources
from pabench.report.view import make_page
from tests.report.synthetic import Made, failing_rows, write_findings, write_run, write_suite


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


@pytest.mark.parametrize(("name", "spoil", "complaint"), [
    ("gate.json", lambda told: told.pop("outcome"), "outcome: Field required"),
    ("gate.json", lambda told: told["metrics"][0].pop("ratio"), "metrics.0.ratio: Field required"),
    ("gate.json", lambda told: told["metrics"][0].update(ratio="no number"), "metrics.0.ratio: Input should be"),
    ("gate.json", lambda told: told.update(metrics=["x"]), "metrics.0: Input should be"),
    ("gate.json", lambda told: told.update(notes=None), "notes: Input should be"),
    ("claims.json", lambda told: told.pop("claims"), "claims: Field required"),
    ("claims.json", lambda told: told["claims"][1].pop("verdict"), "claims.1.verdict: Field required"),
])
def test_a_finding_that_lacks_something(
    top: Path, name: str, spoil: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    write_findings(top / "good")
    path = top / "good" / name
    told = json.loads(path.read_bytes())
    spoil(told)
    path.write_text(json.dumps(told))
    problem = only_problem(top)
    assert f"good/{name}: {complaint}" in problem
    assert problem.endswith("make the file again")


def test_whole_findings_are_no_problem(top: Path) -> None:
    write_findings(top / "good")
    page = make_page(read_sources([top]))
    assert (page.problems, len(page.gates)) == ((), 1)
    assert page.gates[0].table is not None
    assert page.claims is not None
