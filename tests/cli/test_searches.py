"""Sweeps and searches for a capacity, from the command line."""

from __future__ import annotations

import json

from pabench.engines.launch import EngineProcess
from tests.cli.conftest import Run


def test_a_sweep_runs_every_load_and_names_the_knee(pabench: Run, stub: EngineProcess) -> None:
    done = pabench("sweep", "--url", stub.url, "--workload", "smoke", "--users", "1,4", "--num-requests", "8",
                   "--out", "sweep", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "knee (highest throughput / mean latency): 4 users" in done.stdout
    told = pabench("sweep", "--url", stub.url, "--workload", "smoke", "--rates", "20", "--num-requests", "4", "--json")
    assert [run["load"] for run in json.loads(told.stdout)] == ["20 req/s Poisson"]


def test_an_engine_that_is_always_in_time_has_no_limit_in_sight(pabench: Run, stub: EngineProcess) -> None:
    search = ("capacity", "--url", stub.url, "--workload", "smoke", "--duration-s", "2", "--from-rate", "20",
              "--to-rate", "40", "--tries", "1", "--quiet")
    fast = pabench(*search, "--ttft-ms", "2000", "--out", "fast")
    assert fast.returncode == 0, fast.stderr
    assert "capacity: above 40 req/s" in fast.stdout
    slow = json.loads(pabench(*search, "--tpot-ms", "2", "--ttft-ms", "5000", "--json", "--out", "slow").stdout)
    assert (slow["inside"], slow["outside"], len(slow["tried"])) == (None, 20.0, 1)
    refused = pabench(*search)
    assert refused.returncode == 2
    assert "--ttft-ms" in refused.stderr
