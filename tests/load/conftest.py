from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pabench.engines import EngineProcess


@pytest.fixture(scope="session")
def url(tiny_probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the reference engine serves the tiny probe: 512 blocks of 8."""
    command = [sys.executable, "-m", "reference_engine", "--model", str(tiny_probe), "--port", "{port}", "--num-blocks",
               "512", "--block-size", "8"]
    log = tmp_path_factory.mktemp("engine") / "log"
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=log) as process:
        yield process.url
