"""Sweeps and searches for a capacity, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pabench.engines.launch import EngineProcess
from pabench.load.workload import known_workloads
from tests.cli.conftest import Run, stub_of


def test_a_sweep_runs_every_load_and_calls_no_edge_a_knee(pabench: Run, stub: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("seed = 5\n" + known_workloads()["smoke"].read_text())
    done = pabench("sweep", "--url", stub.url, "--workload", "own.toml", "--users", "1,4", "--num-requests", "8",
                   "--out", "sweep", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "\nno knee" in done.stdout, "the highest load is none: beyond it nothing was tried"
    seeds = [json.loads((tmp_path / "sweep" / name / "manifest.json").read_text())["seed"]
             for name in ("00-1-user", "01-4-users")]
    assert seeds == [5, 6], "no load finds another's prompts in the cache"


@pytest.fixture
def slow_stub(tmp_path: Path) -> Iterator[EngineProcess]:
    """Half a second to the first token: so slow that this machine's own lag is small beside it."""
    with stub_of(tmp_path, ttft_ms=500, itl_ms=5) as process:
        yield process


def test_a_search_that_tells_nothing_is_inconclusive(pabench: Run, stub: EngineProcess, tmp_path: Path) -> None:
    done = pabench("capacity", "--url", stub.url, "--workload", "chat", "--ttft-ms", "100", "--from-rate", "0.0001",
                   "--to-rate", "0.0002", "--duration-s", "1", "--tries", "1", "--quiet", "--out", "none")
    assert done.returncode == 3, done.stderr
    assert "undecided at every rate" in done.stdout
    assert (tmp_path / "none" / "capacity.json").exists()


def test_a_search_says_on_which_side_the_capacity_lies(
    pabench: Run, pabench_here: Run, slow_stub: EngineProcess, tmp_path: Path
) -> None:
    search = ("capacity", "--url", slow_stub.url, "--workload", "smoke", "--duration-s", "1", "--from-rate", "40")
    refused = pabench_here(*search)
    assert refused.returncode == 2
    assert "--ttft-ms" in refused.stderr
    done = pabench(*search, "--ttft-ms", "400", "--tries", "1", "--quiet", "--json", "--label", "slow",
                   "--out", "found")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["inside"], told["outside"], len(told["tried"])) == (None, 40.0, 1)
    assert (told["folder"], told["conclusion"][:14]) == ("found", "below 40 req/s")
    # It is kept, and shown again.
    kept = json.loads((tmp_path / "found" / "capacity.json").read_text())
    assert (kept["label"], kept["finished"], kept["capacity"]["tried"]) == ("slow", True, told["tried"])
    assert kept["conclusion"].startswith("below 40 req/s")
    shown = pabench_here("results", "show", "found")
    assert shown.returncode == 0, shown.stderr
    assert "capacity: below 40 req/s" in shown.stdout
    listed = pabench_here("results", "list", "found", "--json")
    assert [row["label"] for row in json.loads(listed.stdout)] == ["slow"]
    assert pabench_here("report", "found").returncode == 0
    assert "Every rate that was tried" in (tmp_path / "report.html").read_text()
