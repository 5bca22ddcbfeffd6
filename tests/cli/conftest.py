"""The command line: in a process of its own, as a user runs it, or within the test where nothing hangs on that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pabench.cli import app
from pabench.engines import EngineProcess

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pabench(tmp_path: Path) -> Run:
    """`pabench(*arguments)` in an empty folder."""
    def run(*arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pabench", *map(str, arguments)], cwd=tmp_path,
                              capture_output=True, text=True, timeout=timeout)
    return run


@pytest.fixture
def pabench_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same within this process: a new one takes over a second to import what it needs."""
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    monkeypatch.chdir(tmp_path)
    return run


def stub_of(folder: Path, *more: str, ttft_ms: float, itl_ms: float) -> EngineProcess:
    """A stub engine that answers the probe's rings, to be entered; its log goes to `folder`. `more`: its options."""
    command = [sys.executable, "-m", "pabench", "stub", "--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms), *more,
               "--port", "{port}"]
    return EngineProcess(command, url="http://127.0.0.1:{port}", log=folder / "stub.log")


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[EngineProcess]:
    """20 ms a token."""
    with stub_of(tmp_path, ttft_ms=20, itl_ms=20) as process:
        yield process
