"""Output whose reader goes away, and faults of our own: neither makes an exit code that is a verdict."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pabench import cli
from tests.report.synthetic import Made, write_run


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), (1.2, 1)])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_verdict_stands_though_nobody_reads_it(tmp_path: Path, slower: float, code: int, form: list[str]) -> None:
    for side, factor in (("baseline", 1.0), ("candidate", slower)):
        for seed in range(4):
            made = Made("engine", requests=24, seed=seed, slower=factor)
            write_run(tmp_path / side / f"{seed}", replace(made, started_at=f"2026-01-02T03:{seed:02}:00+00:00"))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-m", "pabench", "gate", "--baseline", "baseline", "--candidate",
                               "candidate", *form], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (code, b"")


def test_a_fault_of_ours_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fails(**_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # and back
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "ZeroDivisionError: a fault" in capfd.readouterr().err


def test_an_error_does_not_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._fail("a manifest's \x1b]0;title\x07 words", 2)
    assert capfd.readouterr().err == "pabench: a manifest's ]0;title words\n"
