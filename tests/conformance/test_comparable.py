"""Which results may stand side by side: those of one suite, whatever their seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.conformance import Footer, Header, Outcome, Results, Verdict, load_results
from pabench.conformance.comparable import older_suites
from pabench.conformance.results import SPEC_VERSION, suite_digest
from pabench.conformance.runner import run_suite
from pabench.errors import UsageError
from tests.conformance.test_implementations import ADAPTERS, pytest_in

NOTHING = ADAPTERS + """
class Nothing(Bump):
    def unsupported(self, case): return ["nothing at all"]
"""


@pytest.fixture
def nothing(tmp_path: Path) -> str:
    """An adapter that takes no time."""
    (tmp_path / "adapters.py").write_text(NOTHING)
    return f"{tmp_path}/adapters.py:Nothing"


def test_the_header_tells_of_all_cases_whatever_the_seed(nothing: str, tmp_path: Path) -> None:
    told = []
    for seed in (0, 1):
        run_suite(impl=nothing, out=tmp_path / f"out{seed}", profile="smoke", seed=seed, quiet=True)
        results = load_results(tmp_path / f"out{seed}")
        told.append(results.header.suite)
    assert told == [suite_digest([row.name for row in results.rows], "smoke")] * 2


def test_of_a_part_it_tells_nothing(nothing: str, tmp_path: Path) -> None:
    run_suite(impl=nothing, out=tmp_path / "by-id", profile="smoke", ids=["alloc/conservation"], quiet=True)
    pytest_in(tmp_path, "--pabench-impl", nothing, "--pabench-out", "by-k", "--pyargs", "suites.alloc", "-k",
              "not plain")
    assert [load_results(tmp_path / name).header.suite for name in ("by-id", "by-k")] == ["", ""]


def test_tests_of_ones_own_make_no_other_suite(nothing: str, tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("""
import pytest
@pytest.mark.requirement("alloc/conservation", case="mine")
def test_mine(allocator): pass
""")
    pytest_in(tmp_path, "--pabench-impl", nothing, "--pabench-out", "out", "test_own.py", "--pyargs", "suites.alloc")
    results = load_results(tmp_path / "out")
    names = [row.name for row in results.rows if row.case != "mine"]
    assert len(names) == len(results.rows) - 1
    assert results.header.suite == suite_digest(names, "smoke")


def test_a_digest_is_of_names_and_profile() -> None:
    assert suite_digest(["a", "b"], "ci") == suite_digest(["b", "a"], "ci")
    assert len({suite_digest(["a", "b"], "ci"), suite_digest(["a"], "ci"), suite_digest(["a", "b"], "full")}) == 3


def told(suite: str | None, level: str = "alloc", profile: str = "ci") -> Results:
    header = Header(SPEC_VERSION, "0", profile, 0, "", "", suite=suite)
    return Results(header, [Verdict(f"{level}/x", "", "MUST", Outcome.PASS)], Footer(1, {}, 0, 0.0))


@pytest.mark.parametrize(("results", "older"), [
    ([told(None), told(None)], []),
    ([told("a"), told("a"), told("")], []),
    ([told(None), told("a")], [("0", "alloc")]),
    ([told(""), told(None)], [("1", "alloc")]),
    ([told(None), told("a", "kernel")], []),
    ([told("a"), told("b", "kernel"), told("c", profile="full")], []),
])
def test_those_that_tell_no_suite_are_older_than_those_that_do(
    results: list[Results], older: list[tuple[str, str]]
) -> None:
    assert older_suites((str(place), each) for place, each in enumerate(results)) == set(older)


def test_two_suites_are_not_set_side_by_side() -> None:
    with pytest.raises(UsageError, match="one and other are of different suites, with other cases of level alloc"):
        older_suites([("one", told("a")), ("other", told("b"))])
