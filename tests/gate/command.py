"""`pabench gate run` as a user types it, on stubs, with fewer looks than it has by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pabench.resources import data_dir

STUB = [sys.executable, "-m", "pabench", "stub", "--port", "{port}"]
QUICK = ("--workload", "smoke", "--quiet", "--json", "--policy", "quick.toml")
ALIKE = ("--ttft-ms", "40", "--itl-ms", "10")


def gate(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shipped = (data_dir("suites") / "gate.toml").read_text(encoding="utf-8")
    quick = shipped.replace("looks = [4, 8, 16, 32, 48]", "looks = [3, 6]")
    (tmp_path / "quick.toml").write_text(quick, encoding="utf-8")
    return subprocess.run([sys.executable, "-m", "pabench", "gate", "run", *arguments], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
