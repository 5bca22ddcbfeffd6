"""Our backends under the kernel level of the conformance suite: its property tests are the ones of our kernels.

A smoke run among the other tests; `make test-kernels` asks a thousand cases of each kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pabench.conformance import load_registry, load_results
from pabench.conformance.runner import run_suite
from pabench.conformance.verdicts import NOT_CONFORMING, Outcome

PROFILE = "full" if os.environ.get("PABENCH_HYPOTHESIS") == "full" else "smoke"
IDS = [each for each in load_registry() if each.startswith("kernel/")]
SHARES = 6 if PROFILE == "full" else 1  # of the requirements, each in a process of its own


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("impl", ["paged-torch", "paged-numba", "paged-triton"])
def test_a_backend_conforms(impl: str, share: int, tmp_path: Path) -> None:
    code = run_suite(impl=impl, out=tmp_path / "out", profile=PROFILE, ids=IDS[share::SHARES], quiet=True)
    rows = load_results(tmp_path / "out").rows
    failed = [row for row in rows if row.outcome in NOT_CONFORMING and row.level == "MUST"]
    assert [row.text for row in failed] == []
    assert code == (1 if failed else 0)
    assert any(row.outcome is Outcome.PASS for row in rows)
