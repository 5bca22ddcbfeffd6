"""`pabench gate run` from the command line, where no time is asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gate.command import gate


@pytest.mark.parametrize(("arguments", "told"), [
    (("--a", "python serve.py", "--b", "http://127.0.0.1:1"),
     "--baseline is 'python serve.py', which has no {port}: put it where the engine's port belongs\n"),
    (("--a", "http://127.0.0.1:1", "--b", "http://127.0.0.1:1"), "baseline: "),
    (("--a", "http://127.0.0.1:1", "--b", "http://127.0.0.1:1", "--max-pairs", "1"), "expected 2 or more"),
    (("--a", "http://127.0.0.1:1", "--b", "http://127.0.0.1:1", "--profile", "huge"), "huge"),
])
def test_what_cannot_run_says_why_and_exits_2(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = gate(tmp_path, *arguments, "--workload", "smoke")
    assert done.returncode == 2
    assert told in done.stderr
