"""Runs that end before their last case: what was not asked is told, and neither is it exit 0 nor are results lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.cases import Case, write_case
from pabench.conformance.results import FILE_NAME
from pabench.conformance.runner import replay_case, run_suite
from tests.conformance.test_implementations import ADAPTERS, pytest_in

ENDS = ADAPTERS + """
import atexit, signal

class Caching(Bump):
    capabilities = frozenset({"prefix_cache"})
    def computed(self, seq, num_tokens): pass

class Segv(Bump):
    def free(self, seq): os.kill(os.getpid(), signal.SIGSEGV)

class Killed(Bump):
    def free(self, seq): os.kill(os.getpid(), signal.SIGKILL)

class AtExit(Bump):
    def close(self): atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
"""
OWN = """
import pytest
from pabench.conformance.failure import fail

@pytest.mark.requirement("alloc/{first}", case="mine")
def test_first(allocator):
    allocator.asked = True
    fail("this", "that")

@pytest.mark.requirement("alloc/{second}", case="mine")
def test_second(allocator):
    allocator.asked = True
"""


@pytest.fixture(autouse=True)
def adapters(tmp_path: Path) -> Path:
    path = tmp_path / "adapters.py"
    path.write_text(ENDS)
    return path


@pytest.mark.parametrize(("first", "second", "code"), [
    ("completeness", "hit-leaves-a-token", 2),   # a SHOULD fails, a MUST is not reached
    ("conservation", "hit-leaves-a-token", 1),   # a MUST fails
])
def test_what_pytest_leaves_out_is_not_run(tmp_path: Path, first: str, second: str, code: int) -> None:
    (tmp_path / "test_own.py").write_text(OWN.format(first=first, second=second))
    done = pytest_in(tmp_path, "-x", "--pabench-impl", "adapters.py:Caching", "--pabench-out", "out")
    results = load_results(tmp_path / "out")
    assert [row.outcome for row in results.rows] == [Outcome.FAIL, Outcome.NOTRUN]
    assert results.rows[1].reason == "not reached: stopping after 1 failures"
    assert (done.returncode, results.footer.exit_code) == (code, code), done.stdout


def test_no_run_that_left_out_a_should_alone_is_exit_0(tmp_path: Path) -> None:
    passes = "\n@pytest.mark.requirement('alloc/conservation')\ndef test_must(allocator): allocator.asked = True\n"
    own = OWN.format(first="completeness", second="completeness").replace('case="mine"', 'case="other"', 1)
    (tmp_path / "test_own.py").write_text(own + passes)
    done = pytest_in(tmp_path, "-x", "--pabench-impl", "adapters.py:Caching", "--pabench-out", "out")
    results = load_results(tmp_path / "out")
    assert [row.outcome for row in results.rows] == [Outcome.PASS, Outcome.FAIL, Outcome.NOTRUN]
    assert (done.returncode, results.footer.exit_code) == (2, 2), done.stdout


def test_a_second_run_writes_nothing_over(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(OWN.format(first="completeness", second="hit-leaves-a-token"))
    pytest_in(tmp_path, "--pabench-impl", "adapters.py:Caching", "--pabench-out", "out")
    before = (tmp_path / "out" / FILE_NAME).read_text()
    done = pytest_in(tmp_path, "--pabench-impl", "adapters.py:Caching", "--pabench-out", "out")
    assert done.returncode == 2, done.stdout
    assert "out already holds a verdicts.jsonl: name a new folder, or remove that one" in done.stdout + done.stderr
    assert (tmp_path / "out" / FILE_NAME).read_text() == before


INTERRUPTS = """
import signal
from pabench.conformance import results
asdict = results.asdict

def interrupted(values):
    if isinstance(values, results.Verdict):
        signal.raise_signal(signal.SIGINT)
    return asdict(values)

results.asdict = interrupted
"""


def test_an_interrupt_while_a_row_is_written_leaves_it_whole(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(INTERRUPTS)
    (tmp_path / "test_own.py").write_text(OWN.format(first="completeness", second="hit-leaves-a-token"))
    done = pytest_in(tmp_path, "--pabench-impl", "adapters.py:Caching", "--pabench-out", "out")
    results = load_results(tmp_path / "out")
    assert [row.requirement for row in results.rows] == ["alloc/completeness"]
    assert (done.returncode, results.footer.status, results.footer.exit_code) == (130, "interrupted", 130), done.stdout


IDS = ["alloc/conservation", "alloc/completeness"]


def test_a_native_fault_is_a_crash_of_its_case_and_the_rest_is_not_run(
    adapters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_suite(impl=f"{adapters}:Segv", out=tmp_path / "out", profile="smoke", ids=IDS) == 1
    results = load_results(tmp_path / "out")
    assert [(row.name, row.outcome) for row in results.rows[:2]] == [
        ("alloc/conservation[plain]", Outcome.CRASH), ("alloc/conservation[cached]", Outcome.NOTRUN)]
    assert {row.outcome for row in results.rows[1:]} == {Outcome.NOTRUN}
    assert "alloc/completeness" in {row.requirement for row in results.rows}
    assert results.rows[1].reason == "SIGSEGV had ended the process in alloc/conservation[plain]"
    assert (results.footer.exit_code, results.footer.rows) == (1, len(results.rows))
    shown = capfd.readouterr().out
    assert "CRASH alloc/conservation[plain]  (MUST, since 2)      impl: bump 1.0" in shown
    assert f"pabench conform --impl {adapters}:Segv --profile smoke --seed 0 --id alloc/conservation" in shown


@pytest.mark.parametrize(("factory", "says"), [
    ("Killed", "could not run: SIGKILL ended the process of the suite, after alloc/conservation[plain] had begun"),
    ("AtExit", "could not run: SIGSEGV ended the process of the suite\n"),
])
def test_what_is_no_fault_of_a_case_is_told_and_no_verdict(
    adapters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], factory: str, says: str
) -> None:
    code = run_suite(impl=f"{adapters}:{factory}", out=tmp_path / "out", profile="smoke", ids=IDS[:1], quiet=True)
    assert code == 2
    assert says in capfd.readouterr().err


def test_a_fault_in_a_replay_still_fails(
    adapters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = {"pool": {"num_blocks": 4, "block_size": 2, "max_tokens": 4}, "operations": [["allocate", [0], []],
                                                                                         ["free", 0]]}
    name = write_case(tmp_path, Case("alloc/conservation", "plain", "smoke", 0, {"trace": trace}), impl="", text="",
                      evidence={}, circumstances={})
    assert replay_case(tmp_path / name, impl=f"{adapters}:Segv") == 1
    assert "still fails: SIGSEGV ended the process of the suite, after alloc/con" in capfd.readouterr().out
    assert replay_case(tmp_path / name, impl=f"{adapters}:Bump") == 0
