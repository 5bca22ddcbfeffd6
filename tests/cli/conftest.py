"""The command line in a process of its own, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pabench.engines import EngineProcess

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pabench(tmp_path: Path) -> Run:
    """`pabench(*arguments)` in an empty folder."""
    def run(*arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pabench", *map(str, arguments)], cwd=tmp_path,
                              capture_output=True, text=True, timeout=timeout)
    return run


def stub_of(folder: Path, *, ttft_ms: float, itl_ms: float) -> EngineProcess:
    """A stub engine that answers the probe's rings, to be entered; its log goes to `folder`."""
    command = [sys.executable, "-m", "pabench", "stub", "--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms), "--port",
               "{port}"]
    return EngineProcess(command, url="http://127.0.0.1:{port}", log=folder / "stub.log")


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[EngineProcess]:
    """20 ms a token."""
    with stub_of(tmp_path, ttft_ms=20, itl_ms=20) as process:
        yield process
