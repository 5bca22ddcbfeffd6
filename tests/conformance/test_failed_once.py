"""A property that fails once and never again is a failure, at both levels that search: not a pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pabench.conformance.adapters import make_adapter
from pabench.conformance.alloc import AllocatorUnderTest, Play
from pabench.conformance.failure import CaseFailed, fail, not_again
from pabench.conformance.kernel.cases import AttendCase, case_to_json
from pabench.conformance.kernel.strategies import attend_cases
from pabench.conformance.kernel.under_test import KernelUnderTest
from pabench.conformance.profiles import PROFILES
from pabench.errors import RequirementFailed

SMOKE = replace(PROFILES["smoke"], shrink_s=2)
SAYS = "7 blocks are free; failed once, held when asked again: not deterministic"


def once(count: list[int]) -> None:
    """Fail at the third time, and no other."""
    count.append(1)
    if len(count) == 3:
        fail("8 blocks are free", "7 blocks are free", hint="look there")


def test_of_an_allocator() -> None:
    allocator = AllocatorUnderTest(make_adapter("reference-paged"), SMOKE, np.random.default_rng(0), None)
    asked: list[int] = []
    logs = []

    def breaks_once(play: Play) -> None:
        for _ in play:
            pass
        logs.append((play.pool, list(play.operations), list(play.log)))
        once(asked)

    with pytest.raises(CaseFailed) as caught:
        allocator.every_trace(breaks_once)
    assert (caught.value.failure.actual, caught.value.failure.hint) == (SAYS, "look there")
    pool, operations, log = logs[2]
    trace = allocator.drawn()["trace"]
    assert trace["operations"] == operations
    assert trace["pool"]["num_blocks"] == pool.num_blocks
    assert allocator.evidence() == {"log": log}
    assert all(line in allocator.case for line in log)


def test_of_a_kernel() -> None:
    kernel = KernelUnderTest(make_adapter("paged-torch"), SMOKE, np.random.default_rng(0), None)
    asked: list[int] = []
    cases = []

    def breaks_once(_: KernelUnderTest, case: AttendCase) -> None:
        cases.append(case)
        once(asked)

    with pytest.raises(CaseFailed) as caught:
        kernel.every(attend_cases(), breaks_once, share=1)
    assert caught.value.failure.actual == SAYS
    assert kernel.drawn() == {"case": case_to_json(cases[2])}
    assert "AttendCase(" in kernel.case


def test_of_a_failure_without_lines() -> None:
    failure = not_again(RequirementFailed("it is wrong")).failure
    assert failure.actual.startswith("it is wrong; failed once, held")
