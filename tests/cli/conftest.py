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


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[EngineProcess]:
    """A stub engine that answers the probe's rings, 20 ms a token."""
    command = [sys.executable, "-m", "pabench", "stub", "--ttft-ms", "20", "--itl-ms", "20", "--port", "{port}"]
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=tmp_path / "stub.log") as process:
        yield process
