"""Searches from the command line, where no time is asked of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pabench.analysis.sides import read_run
from pabench.engines.launch import EngineProcess
from pabench.terminal.runs import show_sweep
from tests.cli.conftest import Run, stub_of
from tests.report.synthetic import Made, write_run


@pytest.fixture
def quick_stub(tmp_path: Path) -> Iterator[EngineProcess]:
    """A millisecond a token: no time is asked of it here."""
    with stub_of(tmp_path, ttft_ms=1, itl_ms=1) as process:
        yield process


def test_what_a_search_cannot_find_is_refused_before_it_runs(
    pabench_here: Run, quick_stub: EngineProcess, tmp_path: Path
) -> None:
    for command, says in (
        (("capacity", "--workload", "beams", "--ttft-ms", "9"), "beams of workload 'beams' come whole"),
        (("capacity", "--workload", "smoke", "--ttft-ms", "9", "--duration-s", "1"), "fewer than 35 can never be"),
        (("run", "--workload", "beams", "--calibrate"), "come whole: leave --calibrate"),
        (("sweep", "--workload", "beams", "--users", "1,4", "--calibrate"), "come whole: leave --calibrate"),
        (("sweep", "--workload", "smoke", "--users", "1,64"), "64 users, and only 12 requests for them"),
    ):
        refused = pabench_here(*command, "--url", quick_stub.url, "--out", "found", "--quiet")
        assert refused.returncode == 2
        assert says in " ".join(refused.stderr.split())
        assert not (tmp_path / "found").exists(), "no run was begun"


def test_a_sweep_in_json_has_its_knee_and_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """4 users are the best of three loads."""
    for users, slower in ((1, 1.0), (4, 0.7), (16, 4.0)):
        write_run(tmp_path / f"{users:02}", Made("one", users=users, requests=32, slower=slower))
    runs = [read_run(tmp_path / name).summary for name in ("01", "04", "16")]
    show_sweep(runs, tmp_path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["knee"]) == (str(tmp_path), {"load": "4 users", "users": 4, "rate_per_s": None})
    assert told["conclusion"].startswith("knee (")
    assert [run["users"] for run in told["runs"]] == [1, 4, 16]
    show_sweep(runs[:1], tmp_path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["knee"], told["conclusion"][:9]) == (None, "no knee: ")


def test_a_working_set_is_measured_shown_and_kept(pabench_here: Run, quick_stub: EngineProcess, tmp_path: Path) -> None:
    search = ("working-set", "--url", quick_stub.url, "--out", "found", "--quiet")
    refused = pabench_here(*search, "--max-tokens", "5")
    assert refused.returncode == 2
    assert "--max-tokens is 5, expected at least 1024" in refused.stderr
    assert not (tmp_path / "found").exists()
    done = pabench_here(*search, "--max-tokens", "1024", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "found" / "working-set.json").read_text())
    assert (told["schema_version"], told["complete"], told["wrong_answers"]) == (1, True, 0)
    states = {figure["name"]: figure["state"] for figure in told["figures"]}
    assert states["block size"] == states["eviction knee"] == "not applicable"


def test_a_working_set_that_is_broken_off_tells_what_it_has_found(
    quick_stub: EngineProcess, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pabench", "working-set", "--url", quick_stub.url, "--out", "found"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "cold" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "broken off" in out
    told = json.loads((tmp_path / "found" / "working-set.json").read_text())
    assert told["complete"] is False
    assert len(told["cold_and_warm"]) >= 3
