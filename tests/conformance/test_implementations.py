"""Implementations in process through the same machinery as engines: found by name, told apart, bounded, blamed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.adapters import make_adapter
from pabench.conformance.alloc import Pool
from pabench.conformance.alloc import schedule as schedules
from pabench.conformance.failure import CaseFailed
from pabench.conformance.implementation import ImplementationTarget
from pabench.conformance.profiles import PROFILES
from pabench.conformance.runner import replay_case, run_suite
from pabench.errors import UsageError
from suites.alloc.test_scheduler import lives
from tests.conformance import mutant_hosts

ADAPTERS = """
import os, time
from pabench.conformance.alloc import Pool
from pabench.conformance.alloc.schedule import Plan
from pabench.errors import EngineDied

class Bump:
    '''A new block for every token, none ever given back before the pool is.'''
    capabilities = frozenset()
    def describe(self): return "bump 1.0"
    def unsupported(self, case): return ["it has no cache"] if case.caching else []
    def reset(self, pool): self.free_blocks, self.tables = list(range(pool.num_blocks)), {}
    def allocate(self, seq, tokens, extra=()):
        self.tables[seq] = []
        if self.append(seq, tokens) is None:
            self.tables.pop(seq)
            return None
        return 0
    def append(self, seq, tokens):
        if len(tokens) > len(self.free_blocks): return None
        self.tables[seq] += [self.free_blocks.pop() for _ in tokens]
        return []
    def free(self, seq): self.free_blocks += self.tables.pop(seq)
    def block_table(self, seq): return self.tables[seq]
    def num_free_blocks(self): return len(self.free_blocks)

class Picky(Bump):
    def unsupported(self, case): return [] if case == Pool(8, 2, 16) else ["no other pool"]

class Promises(Bump):
    capabilities = frozenset({"fork"})
    def fork(self, seq, child): return None

class Leaky(Bump):
    def free(self, seq): self.free_blocks += self.tables.pop(seq)[1:]
    def describe(self): return "leaky\\x1b[2J\\n  replay    rm -rf /"

class Raises(Bump):
    def append(self, seq, tokens): raise KeyError("no such thing")

class Hangs(Bump):
    def free(self, seq):
        while True: time.sleep(0.01)

class Deaf(Hangs):
    def free(self, seq):
        try: super().free(seq)
        except BaseException: super().free(seq)

class Endless(Bump):
    '''Its scheduler takes all there is, and then looks for a step for ever; or chooses none.'''
    capabilities = frozenset({"scheduler"})
    loops = True
    def scheduler(self, pool, limits): return self
    def add(self, request, prompt, output_tokens): return None
    def abort(self, request): pass
    def complete(self, tokens): pass
    def schedule(self):
        while self.loops: time.sleep(0.01)
        return Plan([])

class Idle(Endless):
    loops = False

class Dies(Bump):
    def free(self, seq): raise EngineDied("the process ended with 139")

class Telepathic(Bump):
    capabilities = frozenset({"telepathy"})

class Kernel:
    capabilities = frozenset()
    device = "cpu"
    def describe(self): return "a kernel"
    def unsupported(self, case): return []
    def attend(self, case): return case

def broken(): raise RuntimeError("no GPU")
"""


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    path = tmp_path / "adapters.py"
    path.write_text(ADAPTERS)
    return path


def ask(factory: str, out: Path, **more: object) -> int:
    return run_suite(impl=factory, out=out, profile="smoke", ids=["alloc/conservation"], **more)  # type: ignore[arg-type]


def outcomes(out: Path) -> dict[str, Outcome]:
    return {row.name: row.outcome for row in load_results(out).rows}


def test_an_adapter_that_takes_none_of_the_traces_has_shown_nothing(adapters: Path, tmp_path: Path) -> None:
    ask(f"{adapters}:Picky", tmp_path / "out", quiet=True)
    (plain, _) = load_results(tmp_path / "out").rows
    assert plain.outcome is Outcome.UNSUPPORTED
    assert plain.reason == "the implementation supports none of the pools that were drawn"


def test_a_manager_that_refuses_every_fork_has_shown_nothing_of_forks(adapters: Path, tmp_path: Path) -> None:
    run_suite(impl=f"{adapters}:Promises", out=tmp_path / "out", profile="smoke", quiet=True,
              ids=["alloc/fork-shares-all-full-blocks", "alloc/single-writer"])
    found = outcomes(tmp_path / "out")
    assert found.pop("alloc/single-writer[hits]") is Outcome.UNSUPPORTED
    assert set(found.values()) == {Outcome.UNSUPPORTED}
    assert len(found) == 2


def test_an_adapter_from_a_file_conforms(adapters: Path, tmp_path: Path) -> None:
    assert ask(f"{adapters}:Bump", tmp_path / "out", quiet=True) == 0
    assert outcomes(tmp_path / "out") == {"alloc/conservation[plain]": Outcome.PASS,
                                          "alloc/conservation[cached]": Outcome.UNSUPPORTED}
    results = load_results(tmp_path / "out")
    assert [row.reason for row in results.rows][1] == "it has no cache"
    assert results.header.url == ""
    assert results.header.engine["label"] == "bump 1.0"
    assert results.header.engine["impl"] == f"{adapters}:Bump"


def test_a_failure_is_shrunk_told_and_played_again(
    adapters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ask(f"{adapters}:Leaky", tmp_path / "out", quiet=True) == 1
    failed = next(row for row in load_results(tmp_path / "out").rows if row.outcome is Outcome.FAIL)
    lines = failed.text.splitlines()
    assert lines[0].endswith("impl: leaky [2J replay rm -rf /")
    assert [line.split()[0] for line in lines[2:]] == ["case", "1", "2", "expected", "actual", "hint", "replay"]
    assert "allocate A: 0" in lines[3]
    assert "free 2 + held 0 = 2 of 3" in failed.text
    case = tmp_path / "out" / failed.replay
    assert lines[-1].endswith(f"pabench replay {case} --impl {adapters}:Leaky")
    assert json.loads(case.read_text())["drawn"]["trace"]["operations"] == [["allocate", [0], []]]
    capfd.readouterr()
    assert replay_case(case, impl=f"{adapters}:Leaky") == 1
    assert "free 2 + held 0 = 2 of 3" in capfd.readouterr().out
    assert replay_case(case, impl=f"{adapters}:Bump") == 0


@pytest.mark.parametrize(("factory", "outcome", "says"), [
    ("Raises", Outcome.FAIL, "allocate(A, 1 tokens) raised KeyError: 'no such thing'"),
    ("Dies", Outcome.CRASH, "the process ended with 139"),
])
def test_what_an_adapter_raises_is_its_own_fault(
    adapters: Path, tmp_path: Path, factory: str, outcome: Outcome, says: str
) -> None:
    assert ask(f"{adapters}:{factory}", tmp_path / "out", quiet=True) == 1
    row = load_results(tmp_path / "out").rows[0]
    assert row.outcome is outcome
    assert says in row.text


@pytest.mark.parametrize("factory", ["Hangs", "Deaf"])
def test_an_adapter_that_hangs_is_left(factory: str, adapters: Path, tmp_path: Path) -> None:
    """Even where the first alarm is lost."""
    text = """
import pytest
from dataclasses import replace
from pabench.conformance.running import SuiteRun

def pytest_collection_finish(session):
    run = session.config.pluginmanager.get_plugin("pabench-suite-run")
    run.profile = replace(run.profile, case_timeout_s=3)
"""
    (tmp_path / "conftest.py").write_text(text)
    (tmp_path / "test_own.py").write_text(OWN)
    done = pytest_in(tmp_path, "--pabench-impl", f"{adapters}:{factory}", "--pabench-out", "out")
    assert done.returncode == 1, done.stdout
    row = load_results(tmp_path / "out").rows[0]
    assert (row.outcome, row.reason) == (Outcome.TIMEOUT, "no end within the 3 s of a case")


@pytest.mark.parametrize(("factory", "says"), [
    ("Endless", "schedule() ends within 0.05 s; it did not, while R0 waits"),
    ("Idle", "a step computes something while a request is unfinished; 3 steps in a row chose nothing, while R0 waits"),
])
def test_a_scheduler_that_stands_still_fails_and_uses_up_no_time(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, says: str
) -> None:
    """Played in this process: a run of its own would not know the shorter limit."""
    monkeypatch.setattr(schedules, "_STEP_S", 0.05)
    adapter = make_adapter(f"{adapters}:{factory}")
    schedule = schedules.Schedule(adapter, Pool(4, 2, 8), schedules.Limits(8, 2), [["add", [0, 1], 1]])
    target = ImplementationTarget(f"{adapters}:{factory}")
    target.open(PROFILES["smoke"], 0, print)
    alarm = signal.getsignal(signal.SIGALRM)
    with pytest.raises(CaseFailed) as caught, target.limited():
        lives(schedule)
    failure = caught.value.failure
    assert f"{failure.expected}; {failure.actual}" == says
    assert signal.getsignal(signal.SIGALRM) == alarm


OWN = """
import pytest

@pytest.mark.requirement("alloc/conservation", case="mine")
def test_mine(allocator):
    allocator.every_trace(lambda play: [play.num_free() for step in play])

@pytest.mark.requirement("http/ring-exact")
def test_http(engine):
    raise AssertionError("must not be run")
"""


def pytest_in(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest in a folder, with the plugin."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -W error\n")
    path = os.pathsep.join([str(mutant_hosts.ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:pabench", "-p", "pabench.conformance.plugin",
         "-p", "no:cacheprovider", "-rA", *options],
        cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path},
    )


def test_tests_of_ones_own_and_junit(adapters: Path, tmp_path: Path) -> None:
    """pytest's own JUnit file has the verdict and the failure text."""
    (tmp_path / "test_own.py").write_text(OWN)
    done = pytest_in(tmp_path, "--pabench-impl", "adapters:Raises", "--junitxml", "junit.xml")
    assert done.returncode == 1, done.stdout
    assert "1 deselected" in done.stdout
    (failure,) = ElementTree.parse(tmp_path / "junit.xml").iter("failure")
    assert failure.text is not None
    assert failure.text.startswith("FAIL alloc/conservation[mine]  (MUST, since 2)      impl: bump 1.0")
    assert "raised KeyError" in failure.text


def test_without_an_implementation_requirements_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(OWN)
    done = pytest_in(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "needs an implementation in process: pass --pabench-impl" in done.stdout
    assert "2 skipped" in done.stdout


@pytest.mark.parametrize(("change", "complaint"), [
    ({}, "got neither of an engine, --url or --launch, and"),
    ({"url": "http://127.0.0.1:1", "impl": "reference-paged"}, "got both of an engine, --url or --launch"),
    ({"impl": "nonsense"}, "--impl is 'nonsense', expected one of reference-paged"),
    ({"impl": "none.py:x"}, "there is no file none.py"),
    ({"impl": "reference-paged", "dialect": "vllm"}, "dialect, model and probe are of an engine at a URL"),
])
def test_bad_names_are_said_before_anything_runs(tmp_path: Path, change: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_suite(**change, out=tmp_path / "out")  # type: ignore[arg-type]
    assert complaint in str(caught.value)


@pytest.mark.parametrize(("factory", "complaint"), [
    ("broken", "makes no adapter: RuntimeError: no GPU"),
    ("nothing", "makes no adapter: AttributeError"),
    ("dict", "which is an adapter of no level; alloc: allocate, append"),
    ("Telepathic", "has unknown capabilities telepathy; known: "),
    ("Kernel", "alloc/conservation is not asked of level kernel"),
])
def test_what_makes_no_adapter_could_not_be_run(
    adapters: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], factory: str, complaint: str
) -> None:
    if factory == "dict":
        adapters.write_text(f"{ADAPTERS}\ndict = dict\n")
    assert ask(f"{adapters}:{factory}", tmp_path / "out") == 2
    assert complaint in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_suites_are_a_package_of_their_own(adapters: Path, tmp_path: Path) -> None:
    """As they are where pabench is installed: `--pyargs pabench.suites`; of the other levels nothing is imported."""
    done = pytest_in(tmp_path, "--pabench-impl", "reference-contiguous", "--pabench-id", "alloc/conservation",
                     "--pyargs", "suites", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_conservation[plain] PASSED" in done.stdout
    assert "suites/http" not in done.stdout
