"""What other tools read: CSV without formulas; in the shape of `vllm bench serve`, lengths and gaps that add up."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pabench.analysis import load_run
from pabench.analysis.export import exported, gaps_s
from pabench.report.tables import Column, table, words
from tests.report.synthetic import Made, write_run


@pytest.mark.parametrize("text", ["x;=cmd|'/c calc'!A0", 'x;"=1+1', "x\n@SUM(A1)", "=1;+1\t-1"])
def test_no_field_of_a_csv_is_a_formula_wherever_it_is_split(tmp_path: Path, text: str) -> None:
    """At commas, as it is written; at semicolons too, or at them alone, as where commas are for decimals."""
    write_run(tmp_path / "a", Made(text))
    shown = table("t", "T", [Column("a", "A"), Column("b", "B")], [[words("first"), words(text)]]).csv
    for made in (exported([tmp_path], "csv"), shown):
        for delimiter in ",;\t":
            fields = [each for row in csv.reader(io.StringIO(made), delimiter=delimiter) for each in row]
            assert not [each for each in fields if each.startswith(tuple("=+-@"))], delimiter
        assert '"x;' in made or not text.startswith("x;")  # so that what splits at both signs does not split here


def test_no_field_of_a_csv_steers_a_terminal(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("a\x1b[31mred\x07\u202e"))
    made = exported([tmp_path], "csv")
    assert "a [31mred" in made
    assert not set(made) & {"\x1b", "\x07", "\u202e"}


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """A run of 60: one failed after tokens had come, three were wrong; tokens came in chunks of four."""
    write_run(tmp_path / "a", Made("engine", errors=("boom",), wrong=3, chunk=4))
    made: dict[str, Any] = json.loads(exported([tmp_path], "vllm"))
    return made


def test_output_lengths_add_up_to_the_total(told: dict[str, Any]) -> None:
    assert sum(told["output_lens"]) == told["total_output_tokens"] > 0
    assert told["output_lens"][:4] == [0, 0, 0, 0]
    assert all(told["output_lens"][4:])


def test_gaps_are_those_of_the_summary(told: dict[str, Any]) -> None:
    ok = [(length, gaps) for length, gaps in zip(told["output_lens"], told["itls"], strict=True) if length]
    assert all(len(gaps) == length - 1 for length, gaps in ok)
    every = 1e3 * np.concatenate([gaps for _, gaps in ok])
    assert every.mean() == pytest.approx(told["mean_itl_ms"])
    assert np.median(every) == pytest.approx(told["median_itl_ms"])
    assert np.quantile(every, 0.99) == pytest.approx(told["p99_itl_ms"])


def test_gaps_of_several_samples_stay_apart(tmp_path: Path) -> None:
    requests = load_run(write_run(tmp_path / "a", Made("engine"))).requests.head(3).copy()
    requests["token_times_s"] = [np.array([1.0, 3.0, 1.5, 5.0]), np.array([]), np.array([2.0, 2.25])]
    requests["token_choices"] = [np.array([0, 1, 0, 1]), np.array([]), np.array([0, 0])]
    assert gaps_s(requests) == [[0.5, 2.0], [], [0.25]]
    assert gaps_s(requests.head(0)) == []
