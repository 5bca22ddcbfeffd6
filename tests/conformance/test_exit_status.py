"""How a run ends: its exit status, its footer and its last line agree, whatever else fails or nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pabench.conformance import Outcome, load_results, runner
from pabench.conformance.runner import replay_case, run_suite
from tests.conformance import mutant_hosts
from tests.conformance.test_implementations import ADAPTERS, pytest_in

MUST_SHOULD_AND_ANOTHER = """
import pytest

@pytest.mark.requirement("alloc/conservation", case="mine")
def test_must(allocator):
    allocator.every_trace(lambda play: [play.num_free() for step in play])

@pytest.mark.requirement("alloc/completeness", case="mine")
def test_should(allocator):
    assert not allocator, "it keeps less than it could"

def test_that_decides_none():
    pass
"""
BROKEN_MUST = """
@pytest.mark.requirement("alloc/single-writer", case="mine")
def test_broken(allocator):
    raise ValueError("the test's own fault")
"""


@pytest.mark.parametrize(("more", "code"), [
    ("", 0), (BROKEN_MUST, 2), ("def test_that_fails(): assert 0", 1), (BROKEN_MUST + "def test_x(): assert 0", 1),
])
def test_beside_tests_of_ones_own_a_should_changes_nothing(tmp_path: Path, more: str, code: int) -> None:
    (tmp_path / "test_own.py").write_text(MUST_SHOULD_AND_ANOTHER + more)
    done = pytest_in(tmp_path, "--pabench-impl", "reference-paged", "--pabench-out", "out")
    outcomes = {row.requirement: row.outcome for row in load_results(tmp_path / "out").rows}
    assert outcomes["alloc/completeness"] is Outcome.FAIL
    assert done.returncode == code, done.stdout


def test_a_run_ends_in_order_whatever_others_make_of_its_end(tmp_path: Path) -> None:
    """Footer and close, which stops an engine that was launched."""
    (tmp_path / "test_own.py").write_text(MUST_SHOULD_AND_ANOTHER)
    (tmp_path / "conftest.py").write_text("""
from pathlib import Path
import pytest
from pabench.conformance.implementation import ImplementationTarget

ImplementationTarget.close = lambda self: Path("closed").touch()

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    raise RuntimeError("a fault of its own")
""")
    done = pytest_in(tmp_path, "--pabench-impl", "reference-paged", "--pabench-out", "out")
    assert "a fault of its own" in done.stderr
    assert load_results(tmp_path / "out").footer.exit_code == 0
    assert (tmp_path / "closed").exists()


def conform(folder: Path, factory: str, stdout: int, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`run_suite` in a process of its own, with adapters that call their fault by a name that is not ASCII."""
    (folder / "adapters.py").write_text(ADAPTERS.replace("no such thing", "kein Schlüssel"), encoding="utf-8")
    code = ("import sys; from pathlib import Path; from pabench.conformance.runner import run_suite; "
            f"sys.exit(run_suite(impl='adapters.py:{factory}', out=Path('out'), profile='smoke', "
            "ids=['alloc/conservation']))")
    return subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=stdout, stderr=subprocess.PIPE, timeout=60,
                          env=os.environ | {"PYTHONPATH": str(mutant_hosts.ROOT)} | environment)


@pytest.mark.parametrize(("factory", "code"), [("Bump", 0), ("Raises", 1)])
def test_a_verdict_stands_though_nobody_reads_it(tmp_path: Path, factory: str, code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = conform(tmp_path, factory, writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (code, b"")
    assert load_results(tmp_path / "out").footer.exit_code == code


def test_an_output_that_is_not_utf_8_has_escapes(tmp_path: Path) -> None:
    done = conform(tmp_path, "Raises", subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    assert rb"kein Schl\xfcssel" in done.stdout
    assert b"not conforming: bump 1.0" in done.stdout


@pytest.fixture(scope="module")
def case_of_a_should(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a case that the suite has no test for; test_own.py, a folder above, has."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "test_own.py").write_text(MUST_SHOULD_AND_ANOTHER)
    pytest_in(folder, "--pabench-impl", "reference-paged", "--pabench-out", "out")
    (name,) = [row.replay for row in load_results(folder / "out").rows if row.replay]
    return folder / "out" / name


def test_a_replay_says_what_its_exit_code_says(case_of_a_should: Path) -> None:
    """1 also for a SHOULD that fails, which a whole run holds against nobody."""
    done = pytest_in(case_of_a_should.parents[1], "--pabench-impl", "reference-paged", "--pabench-replay",
                     str(case_of_a_should), "-s", "-p", "pabench.conformance.live")
    assert done.returncode == 1
    assert "still fails: " in done.stdout
    assert ", 1 requirement: 1 FAIL" in done.stdout
    assert "conforming" not in done.stdout


def test_a_replay_of_a_case_that_is_gone_says_so(case_of_a_should: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert replay_case(case_of_a_should, impl="reference-paged") == 2
    assert capfd.readouterr().err == "could not run: the suite has no test for this\n"


@pytest.mark.parametrize("code", [0, 1, 120])
def test_how_python_fails_is_no_verdict(case_of_a_should: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(runner, "_START", f"raise SystemExit({code})")
    assert replay_case(case_of_a_should, impl="reference-paged") == 2


def test_an_adapter_that_ends_the_process_has_not_passed(case_of_a_should: Path, tmp_path: Path) -> None:
    (tmp_path / "adapters.py").write_text(ADAPTERS.replace("def broken(): ", "def broken(): os._exit(0)\ndef b(): "))
    assert run_suite(impl=f"{tmp_path}/adapters.py:broken", out=tmp_path / "out2", profile="smoke") == 2
    assert replay_case(case_of_a_should, impl=f"{tmp_path}/adapters.py:broken") == 2
