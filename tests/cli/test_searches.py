"""Sweeps and searches for a capacity, from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pabench.engines.launch import EngineProcess
from tests.cli.conftest import Run


def test_a_sweep_runs_every_load_and_names_the_knee(pabench: Run, stub: EngineProcess) -> None:
    done = pabench("sweep", "--url", stub.url, "--workload", "smoke", "--users", "1,4", "--num-requests", "8",
                   "--out", "sweep", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "knee (highest throughput / mean latency): 4 users" in done.stdout
    told = pabench("sweep", "--url", stub.url, "--workload", "smoke", "--rates", "20", "--num-requests", "4", "--json")
    assert [run["load"] for run in json.loads(told.stdout)] == ["20 req/s Poisson"]


@pytest.fixture
def slow_stub(tmp_path: Path) -> Iterator[EngineProcess]:
    """A second to the first token: so slow that this machine's own lag is small beside it."""
    command = [sys.executable, "-m", "pabench", "stub", "--ttft-ms", "1000", "--itl-ms", "5", "--port", "{port}"]
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=tmp_path / "stub.log") as process:
        yield process


def test_a_search_says_on_which_side_the_capacity_lies(pabench: Run, slow_stub: EngineProcess) -> None:
    search = ("capacity", "--url", slow_stub.url, "--workload", "smoke", "--duration-s", "2", "--from-rate", "20",
              "--to-rate", "40", "--tries", "1", "--quiet")
    enough = pabench(*search, "--ttft-ms", "4000", "--out", "enough")
    assert enough.returncode == 0, enough.stderr
    assert "capacity: above 40 req/s" in enough.stdout
    too_much = pabench(*search, "--ttft-ms", "900", "--json", "--out", "too-much")
    assert too_much.returncode == 0, too_much.stderr
    told = json.loads(too_much.stdout)
    assert (told["inside"], told["outside"], len(told["tried"])) == (None, 20.0, 1)
    refused = pabench(*search)
    assert refused.returncode == 2
    assert "--ttft-ms" in refused.stderr
