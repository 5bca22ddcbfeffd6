"""The benchmark of the live gate: what it counts, and that it goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.analysis.sides import Samples
from pabench.errors import PabenchError
from pabench.gate import decide, load_policy
from tests.gate import live_quality

BASE = (10.0, 10.1, 9.9, 10.0, 10.05)


def test_gates_are_counted_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Gate:
        def __init__(self, sides: object, workload: object, policy: object, folder: Path, seed: int, **rest: object):
            self.case, self.seed = folder.name, seed

        def run(self) -> object:
            ran.append(self.case)
            if self.case == "aa-01":
                raise PabenchError("no engine")
            slower = 1.2 if self.case.startswith("tpot") else 1.0
            return decide([Samples("load", "tpot_p50_ms", BASE, tuple(slower * one for one in BASE), paired=True)],
                          load_policy())

    monkeypatch.setattr(live_quality, "GateRun", Gate)
    monkeypatch.setattr(live_quality, "build_checkpoint", lambda probe, folder: folder.mkdir())
    arguments = ["--gates", "2", "--only", "aa,tpot", "--out", str(tmp_path)]
    (tmp_path / "tpot-01" / "baseline").mkdir(parents=True)  # broken off
    live_quality.main(arguments)
    assert ran == ["aa-00", "tpot-00", "aa-01", "tpot-01"]
    told = capsys.readouterr().out
    assert "tpot +20.0 % WORSE" in told
    assert "[no engine]" in told
    assert "| nothing (A/A) | 2 | 0 | 1 | 0 | 1 | 2.5 |" in told
    assert "| TPOT worse by 5% | 2 | 2 | 0 | 0 | 0 | 5.0 |" in told
    live_quality.main(arguments)
    assert len(ran) == 4
    assert capsys.readouterr().out == told
