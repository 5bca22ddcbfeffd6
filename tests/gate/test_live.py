"""`pabench gate run` on stubs of known timing, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pabench.engines import EngineProcess
from tests.gate.command import ALIKE, QUICK, STUB, gate


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[dict[str, str]]:
    """URLs of stubs: two alike, one slower, one that errs."""
    options = {"one": ALIKE, "two": ALIKE, "slow": ("--ttft-ms", "40", "--itl-ms", "12"),
               "wrong": (*ALIKE, "--wrong-every", "25")}
    with ExitStack() as running:
        yield {name: running.enter_context(EngineProcess([*STUB, *more], url="http://127.0.0.1:{port}",
                                                         log=tmp_path / f"{name}.log")).url
               for name, more in options.items()}


def test_alike_passes_slower_fails_wrong_fails(tmp_path: Path, stubs: dict[str, str]) -> None:
    same = gate(tmp_path, "--a", stubs["one"], "--b", stubs["two"], *QUICK, "--out", "same")
    assert same.returncode == 0, same.stdout + same.stderr
    assert json.loads(same.stdout)["outcome"] == "PASS"
    assert json.loads(same.stdout)["notes"][0].startswith("baseline and candidate stayed up: how two starts")
    slow = gate(tmp_path, "--a", stubs["one"], "--b", stubs["slow"], *QUICK, "--out", "slow")
    assert slow.returncode == 1, slow.stdout + slow.stderr
    (tpot,) = [each for each in json.loads(slow.stdout)["metrics"] if each["metric"] == "tpot_p50_ms"]
    assert tpot["outcome"] == "worse"
    assert 1.1 < tpot["ratio"] < 1.25
    wrong = gate(tmp_path, "--a", stubs["one"], "--b", stubs["wrong"], *QUICK, "--out", "wrong")
    assert wrong.returncode == 1
    assert "wrong tokens" in json.loads(wrong.stdout)["failures"][0]
    # Turns: A B, then B A; the same schedule for both of a pair. Pairs that were disturbed are set aside.
    baseline, candidate = ({run.name: json.loads((run / "manifest.json").read_text())
                            for run in (tmp_path / "same" / side).glob("00?-*")} for side in ("baseline", "candidate"))
    assert len(baseline) >= 3
    assert baseline.keys() == candidate.keys()
    for name, one in baseline.items():
        other = candidate[name]
        assert (one["started_at"] < other["started_at"]) == (int(name[:3]) % 2 == 0)
        assert one["schedule_digest"] == other["schedule_digest"]
    # What it measured can be judged again.
    again = subprocess.run([sys.executable, "-m", "pabench", "gate", "--baseline", "slow/baseline", "--candidate",
                            "slow/candidate"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1, again.stderr


def test_it_launches_engines_itself_and_cannot_decide_on_two_pairs(tmp_path: Path) -> None:
    command = " ".join([*STUB, *ALIKE])
    done = gate(tmp_path, "--a", command, "--b", command, *QUICK, "--max-pairs", "2", "--out", "out",
                "--num-requests", "4", "--users", "4")
    assert done.returncode in (0, 3), done.stderr
    assert (tmp_path / "out" / "baseline" / "000-engine.log").exists()
    assert (tmp_path / "out" / "gate.md").read_text().startswith("## pabench gate: ")


def test_turns_are_runs_of_engines_that_stay_up(tmp_path: Path) -> None:
    command = " ".join([*STUB, *ALIKE])
    done = gate(tmp_path, "--a", command, "--b", command, *QUICK, "--max-pairs", "2", "--turns", "2", "--out", "out",
                "--num-requests", "4", "--users", "4")
    assert done.returncode in (0, 3), done.stderr
    assert {each["count"] for each in json.loads(done.stdout)["metrics"]} == {2}
    runs = sorted((json.loads(path.read_text()) for path in tmp_path.glob("out/**/manifest.json")),
                  key=lambda run: run["started_at"])
    order = "".join(run["label"][0] for run in runs)
    assert order.startswith("bccbbccb")  # more where a turn was set aside
    starts = [run["engine_started_at"] for run in runs]
    assert starts[:8] == [starts[0]] * 4 + [starts[4]] * 4
    assert starts[0] < starts[4]
    assert [run["seed"] - runs[0]["seed"] for run in runs[:8:2]] == list(range(4))
    assert len({run["url"] for run in runs[:4]}) == 2  # an engine a side, for all of its turns
    assert len(list(tmp_path.glob("out/baseline/*-engine.log"))) == len({*starts})
