"""Results on disk, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.report.synthetic import Made, write_run


def test_results_are_listed_shown_compared_and_exported(pabench_here: Run, tmp_path: Path) -> None:
    for name, slower in (("one", 1.0), ("two", 1.2)):
        for seed in range(3):
            write_run(tmp_path / name / str(seed), Made(name, requests=16, seed=seed, slower=slower))
    listed = pabench_here("results", "list", "one", "two", "--json")
    assert [row["label"] for row in json.loads(listed.stdout)] == ["one"] * 3 + ["two"] * 3
    narrow = pabench_here("results", "list", "one").stdout.splitlines()
    assert [line.split() for line in narrow[-3:]] == [[str(seed + 1), f"one/{seed}"] for seed in range(3)]
    refused = pabench_here("results", "show", "one")
    assert "`pabench results list one` names the runs below it" in refused.stderr
    followed = pabench_here("history", "one", "two")
    assert followed.stdout.startswith("too few runs to tell of ")
    assert len(followed.stdout.splitlines()) <= 2  # at 80 columns
    shown = pabench_here("results", "show", "one/0")
    assert shown.returncode == 0, shown.stderr
    assert "Example CPU" in shown.stdout
    rows = {line.split("│")[1].strip() for line in shown.stdout.splitlines() if line.startswith("│")}
    assert {"TTFT", "TTFT, intended", "TPOT", "ITL", "E2E"} <= rows
    assert "of 16 only" in shown.stdout, "a p99 of few samples"
    assert "steady window " in shown.stdout
    assert "VALID" in shown.stdout
    compared = pabench_here("compare", "one", "two", "--metric", "tpot_p50_ms", "--json")
    (row,) = json.loads(compared.stdout)
    assert 1.15 < row["ratio"] < 1.25
    written = pabench_here("results", "export", "one", "--format", "csv", "--out", "one.csv")
    assert written.returncode == 0, written.stderr
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 4


def test_what_is_wrong_is_one_line_and_exit_2(pabench_here: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, told in (
        (("results", "list", "empty"), "no run below empty"), (("results", "list"), "results is no folder"),
        (("results", "export", "empty", "--format", "xls"), "expected one of json, vllm"),
        (("compare", "empty"), "two folders or more"), (("history", "empty", "--metric", "tpot"), "no run below"),
    ):
        done = pabench_here(*arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert told in done.stderr
