"""The end of a bench: the table of all engines at all loads, and what is to be known of them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pabench.analysis import throughput_table
from pabench.analysis.summary import Validity
from pabench.bench import EngineResult
from pabench.terminal.runs import finish_bench
from tests.report.synthetic import Made, write_run


def run(label: str, load: str, rate: float, verified: float | None = None, *, valid: bool = True) -> Any:
    return SimpleNamespace(label=label, load=load, throughput_tokens_per_s=rate, verified_tokens_per_s=verified,
                           validity=Validity(valid))


def cells(*engines: list[Any]) -> dict[str, list[str]]:
    out = io.StringIO()
    Console(file=out, width=200).print(throughput_table(engines))
    lines = [line.strip("│┃").replace("┃", "│").split("│") for line in out.getvalue().splitlines() if line[0] in "│┃"]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_others_are_multiples_of_the_first_at_the_same_load() -> None:
    found = cells([run("a", "1 user", 100), run("a", "8 users", 400)],
                  [run("b", "1 user", 50), run("b", "8 users", 1000)])
    assert found == {"": ["1 user", "8 users"], "a": ["100", "400"], "b": ["50 (×0.50)", "1,000 (×2.50)"]}


def test_wrong_tokens_do_not_count_where_answers_are_verified() -> None:
    found = cells([run("a", "1 user", 100, 100)], [run("b", "1 user", 300, 150)])
    assert (found["a"], found["b"]) == (["100"], ["150 (×1.50)"])


def test_a_load_that_one_engine_lacks_has_no_multiple() -> None:
    found = cells([run("a", "1 user", 100)], [run("b", "1 user", 90), run("b", "8 users", 300)])
    assert (found["a"], found["b"]) == (["100", "–"], ["90 (×0.90)", "300"])


def test_what_is_invalid_is_marked_and_in_no_multiple() -> None:
    found = cells([run("a", "1 user", 100, valid=False), run("a", "8 users", 400)],
                  [run("b", "1 user", 50), run("b", "8 users", 1000, valid=False)])
    assert (found["a"], found["b"]) == (["100 INVALID", "400"], ["50", "1,000 INVALID"])


def test_hostile_labels_are_text() -> None:
    assert cells([run("[red]a", "1 user", 0)], [run("b", "1 user", 5)]) == {"": ["1 user"], "[red]a": ["0"], "b": ["5"]}


def test_the_end_of_a_bench_tells_every_run_that_is_invalid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the runs that the last table leaves out too."""
    folders = [write_run(tmp_path / "one" / "first", Made("one", requests=24, users=4, status="interrupted")),
               write_run(tmp_path / "one" / "last", Made("one", requests=24))]
    finish_bench([EngineResult("one", runs=folders)], tmp_path, as_json=False)
    assert "INVALID one, 4 users: the run is interrupted" in capsys.readouterr().out
