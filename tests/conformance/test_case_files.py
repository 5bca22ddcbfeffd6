"""What a case file keeps of a case that did not come to its end, and the line that asks it again."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.adapters import make_adapter
from pabench.conformance.alloc import AllocatorUnderTest, Play
from pabench.conformance.cases import Case, write_case
from pabench.conformance.kernel.cases import AttendCase
from pabench.conformance.kernel.strategies import attend_cases
from pabench.conformance.kernel.under_test import KernelUnderTest
from pabench.conformance.profiles import PROFILES
from pabench.conformance.runner import replay_case
from pabench.errors import EngineDied
from tests.conformance.test_implementations import ADAPTERS, ask, pytest_in

SMOKE = replace(PROFILES["smoke"], shrink_s=2)


class Alarm(BaseException):
    """As a case's alarm is one: no Exception."""


@pytest.mark.parametrize("ends", [EngineDied, Alarm])
def test_an_allocators_trace_is_kept_however_it_ends(ends: type[BaseException]) -> None:
    allocator = AllocatorUnderTest(make_adapter("reference-paged"), SMOKE, np.random.default_rng(0), None)
    asked = []

    def ends_the_third(play: Play) -> None:
        asked.append(list(play.operations))
        if len(asked) == 3:
            raise ends

    with pytest.raises(ends):
        allocator.every_trace(ends_the_third)
    assert allocator.drawn()["trace"]["operations"] == asked[2]


@pytest.mark.parametrize("ends", [EngineDied, Alarm])
def test_a_kernels_case_is_kept_however_it_ends(ends: type[BaseException]) -> None:
    kernel = KernelUnderTest(make_adapter("paged-torch"), SMOKE, np.random.default_rng(0), None)
    asked = []

    def ends_the_second(_: KernelUnderTest, case: AttendCase) -> None:
        asked.append(case)
        if len(asked) == 2:
            raise ends

    with pytest.raises(ends):
        kernel.every(attend_cases(), ends_the_second)
    assert kernel.found == asked[1]


def test_a_crash_is_asked_again(tmp_path: Path) -> None:
    adapters = tmp_path / "adapters.py"
    adapters.write_text(ADAPTERS)
    ask(f"{adapters}:Dies", tmp_path / "out", quiet=True)
    row = load_results(tmp_path / "out").rows[0]
    assert row.outcome is Outcome.CRASH
    assert replay_case(tmp_path / "out" / row.replay, impl=f"{adapters}:Dies") == 1
    assert replay_case(tmp_path / "out" / row.replay, impl=f"{adapters}:Bump") == 0


@pytest.mark.parametrize(("requirement", "case", "drawn", "impl", "what"), [
    ("alloc/conservation", "plain", {"trace": None}, "reference-paged", "trace"),
    ("kernel/alibi", "", {}, "paged-torch", "case"),
])
def test_a_file_without_one_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], requirement: str, case: str, drawn: dict[str, object],
    impl: str, what: str,
) -> None:
    name = write_case(tmp_path, Case(requirement, case, "smoke", 0, drawn), impl="", text="", evidence={},
                      circumstances={})
    assert replay_case(tmp_path / name, impl=impl) == 2
    said = capfd.readouterr()
    assert f"could not run: the case file keeps no {what} to ask again: " in said.err
    assert "ERROR" not in said.out


OWN = """
import pytest
from pabench.conformance.failure import fail

def test_ordinary():
    pass

@pytest.mark.requirement("alloc/failure-is-no-op", case="mine")
def test_late(allocator):
    allocator.asked = True
    fail("this", "that")

@pytest.mark.requirement("alloc/conservation", case="mine")
def test_early(allocator):
    allocator.asked = True
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "test_own.py").write_text(OWN)
    (tmp_path / "adapters.py").write_text(ADAPTERS)
    return tmp_path


def test_requirements_keep_their_order_beside_other_tests(own: Path) -> None:
    done = pytest_in(own, "--pabench-impl", "adapters.py:Bump", "--pabench-out", "out", "-v")
    rows = load_results(own / "out").rows
    assert [row.requirement for row in rows] == ["alloc/conservation", "alloc/failure-is-no-op"]
    places = [done.stdout.index(f"::{name}") for name in ("test_ordinary", "test_early", "test_late")]
    assert places == sorted(places)


def test_the_replay_line_of_a_test_of_ones_own_finds_it(own: Path) -> None:
    pytest_in(own, "--pabench-impl", "adapters.py:Bump", "--pabench-out", "out", "--pabench-patience", "2")
    (text,) = [row.text for row in load_results(own / "out").rows if row.text]
    line = text.splitlines()[-1].split(maxsplit=1)[1]
    assert line.startswith("pytest test_own.py --pabench-impl adapters.py:Bump --pabench-patience 2 --pabench-replay ")
    again = pytest_in(own, *shlex.split(line)[1:])
    assert again.returncode == 1
    assert "1 failed, 2 deselected" in again.stdout
    case = next((own / "out").glob("case-*.json"))
    assert json.loads(case.read_text())["failure"].startswith("FAIL alloc/failure-is-no-op[mine]")
