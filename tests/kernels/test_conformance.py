"""Our backends under the kernel level of the conformance suite: its property tests are the ones of our kernels.

A smoke run among the other tests. `make test-kernels` asks a thousand cases of each kernel in Triton's interpreter:
decode, extend, write, copy and merge, each where all options meet.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.conformance import load_registry, load_results
from pabench.conformance.runner import run_suite
from pabench.conformance.verdicts import NOT_CONFORMING, Outcome

SMOKE = [each for each in load_registry() if each.startswith("kernel/")]
THOUSAND = {"attention": ["kernel/equals-dense"], "splits": ["kernel/split-invariant"],
            "memory": ["kernel/cache-write-injective", "kernel/block-copy-exact", "kernel/merge-equals-dense"]}


# Compiled, or in Triton's interpreter, it takes long: with the thousand cases, then.
@pytest.mark.parametrize("impl", ["paged-torch", *(pytest.param(name, marks=pytest.mark.kernels)
                                                   for name in ("paged-numba", "paged-triton"))])
def test_a_backend_conforms(impl: str, tmp_path: Path) -> None:
    _conforms(impl, "smoke", SMOKE, tmp_path / "out")


@pytest.mark.kernels
@pytest.mark.parametrize("kernels", THOUSAND)
def test_a_thousand_cases_of_each_kernel(kernels: str, tmp_path: Path) -> None:
    _conforms("paged-triton", "full", THOUSAND[kernels], tmp_path / "out")


def _conforms(impl: str, profile: str, ids: list[str], out: Path) -> None:
    code = run_suite(impl=impl, out=out, profile=profile, ids=ids, quiet=True)
    rows = load_results(out).rows
    failed = [row for row in rows if row.outcome in NOT_CONFORMING and row.level == "MUST"]
    assert [row.text for row in failed] == []
    assert code == (1 if failed else 0)
    assert any(row.outcome is Outcome.PASS for row in rows)
