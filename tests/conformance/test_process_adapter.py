"""A block manager in a process of its own: asked line by line, bounded, told about when it dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.alloc import Pool
from pabench.conformance.alloc.adapter import CAPABILITIES, METHODS
from pabench.conformance.alloc.process import ManagerError, ProcessAdapter, ProcessScheduler
from pabench.conformance.alloc.schedule import Limits
from pabench.conformance.runner import run_suite
from pabench.errors import EngineDied, EngineTimeout, UsageError
from pabench.resources import data_dir

WORKER = """
import os, sys, time
sys.path.insert(0, {adapters!r})
from json_lines import serve

if "imports-long" in sys.argv: time.sleep(1.5)
if "once" in sys.argv:
    if os.path.exists(__file__ + ".started"): sys.exit("no second time")
    open(__file__ + ".started", "w").close()

class Bump:
    '''A new block for every token.'''
    capabilities = tuple("{capabilities}".split())
    def describe(self): return "bump 1.0 \\x1b[2J"
    def unsupported(self, pool): return ["it has no cache"] if pool["caching"] else []
    def reset(self, pool):
        print("noise on standard output")
        self.blocks, self.tables = list(range(pool["num_blocks"])), {{}}
    def allocate(self, seq, tokens, extra):
        self.tables[seq] = []
        if self.append(seq, tokens) is None:
            del self.tables[seq]
            return None
        return 0
    def append(self, seq, tokens):
        if len(tokens) > len(self.blocks): return None
        self.tables[seq] += [self.blocks.pop() for _ in tokens]
        return []
    def free(self, seq):
        if "dies" in sys.argv:
            print("assertion failed: refcount", file=sys.stderr, flush=True)
            os._exit(7)
        if "hangs" in sys.argv: time.sleep(60)
        if "slow" in sys.argv: time.sleep(0.7)
        if "raises" in sys.argv: raise KeyError("no such sequence")
        self.blocks += self.tables.pop(seq)
    def block_table(self, seq): return self.tables[seq]
    def num_free_blocks(self): return len(self.blocks)
    def block_keys(self, pool, tokens, extra): return [bytes(tokens).hex()]
    def computed(self, seq, num_tokens): pass
    def fork(self, parent, child): return [[parent, child]] if child < 9 else None
    def cost(self, operation, seq, tokens, extra): return len(tokens) if operation == "append" and extra == [] else None
    def can_ever_hold(self, prompt_tokens, final_tokens, n): return n * final_tokens - prompt_tokens == 1
    def truncate(self, seq, num_tokens): pass
    def slide(self, seq, position): pass
    def swap_out(self, seq, num_computed): return [[seq, num_computed]] if seq else None
    def swap_in(self, seq): return [2, [[7, 8]]] if seq else None
    def slots(self, seq, start, stop): return [2**40 + at for at in range(start, stop)]
    def scheduler(self, pool, limits): pass

serve(Bump())
"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER.format(adapters=str(data_dir("suites") / "adapters"), capabilities="block_keys"))
    return path


def test_it_answers_and_what_it_prints_does_not_disturb(worker: Path) -> None:
    adapter = ProcessAdapter([sys.executable, str(worker)])
    try:
        assert adapter.describe() == "bump 1.0 [2J"
        assert adapter.capabilities == {"block_keys"}
        adapter.reset(Pool(4, 1, 2))
        assert adapter.allocate(0, [1, 2]) == 0
        assert list(adapter.block_table(0)) == [3, 2]
        assert adapter.allocate(1, [1, 2, 3]) is None
        assert adapter.append(0, [1]) == []
        assert adapter.num_free_blocks() == 1
        assert adapter.block_keys(Pool(4, 1, 2), [7, 8], []) == [b"\x07\x08"]
        with pytest.raises(ManagerError, match="KeyError: 9"):
            adapter.free(9)
    finally:
        adapter.close()


def test_every_capability_can_be_had_through_a_process(tmp_path: Path) -> None:
    """One round trip of each of its methods."""
    path = tmp_path / "worker.py"
    path.write_text(WORKER.format(adapters=str(data_dir("suites") / "adapters"), capabilities=" ".join(CAPABILITIES)))
    pool = Pool(4, 1, 2)
    calls: dict[str, list[tuple[tuple[Any, ...], Any]]] = {
        "fork": [((0, 1), [(0, 1)]), ((0, 9), None)], "computed": [((0, 1), None)], "truncate": [((0, 1), None)],
        "cost": [(("append", 0, [1, 0], ()), 2), (("allocate", 0, [1], ("a",)), None)], "slide": [((0, 1), None)],
        "can_ever_hold": [((3, 2, 2), True), ((4, 2, 2), False)], "slots": [((0, 1, 3), [2**40 + 1, 2**40 + 2])],
        "swap_out": [((3, 2), [(3, 2)]), ((0, 2), None)], "swap_in": [((1,), (2, [(7, 8)])), ((0,), None)],
        "block_keys": [((pool, [7], []), [b"\x07"])],
    }
    adapter = ProcessAdapter([sys.executable, str(path)])
    try:
        assert adapter.capabilities == CAPABILITIES
        assert {name for names in METHODS.values() for name in names} == {*calls, "scheduler"}
        for name, asked in calls.items():
            for arguments, answer in asked:
                assert getattr(adapter, name)(*arguments) == answer, name
        assert isinstance(adapter.scheduler(pool, Limits(2, 1)), ProcessScheduler)
    finally:
        adapter.close()


@pytest.mark.parametrize(("how", "error", "says"), [
    ("dies", EngineDied, "broke at 'free': .*; it ended with status 7; last words: assertion failed: refcount"),
    ("hangs", EngineTimeout, "no answer of the block manager within 0.5 s"),
])
def test_it_starts_again_after_it_has_gone(worker: Path, how: str, error: type[Exception], says: str) -> None:
    adapter = ProcessAdapter([sys.executable, str(worker), how], timeout_s=0.5)
    try:
        for _ in range(2):
            adapter.reset(Pool(4, 1, 2))
            adapter.allocate(0, [1])
            with pytest.raises(error, match=says):
                adapter.free(0)
    finally:
        adapter.close()


def _struck(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def test_an_answer_that_is_cut_off_is_not_taken_for_the_next(worker: Path) -> None:
    """As the alarm of a case does it, which a test's own limit leaves no room for."""
    before = signal.signal(signal.SIGUSR1, _struck)
    adapter = ProcessAdapter([sys.executable, str(worker), "slow"])
    try:
        adapter.reset(Pool(4, 1, 2))
        assert adapter.allocate(0, [1, 2]) == 0
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            adapter.free(0)
        adapter.reset(Pool(4, 1, 2))
        assert adapter.allocate(0, [1]) == 0
        assert adapter.num_free_blocks() == 3
    finally:
        adapter.close()
        signal.signal(signal.SIGUSR1, before)


def test_one_that_imports_for_long_has_the_time_for_it_each_time(worker: Path) -> None:
    adapter = ProcessAdapter([sys.executable, str(worker), "dies", "imports-long"], timeout_s=0.5)
    try:
        for _ in range(2):
            adapter.reset(Pool(4, 1, 2))
            adapter.allocate(0, [1])
            with pytest.raises(EngineDied):
                adapter.free(0)
    finally:
        adapter.close()


def test_an_answer_in_drops_is_bounded_as_a_whole() -> None:
    drops = """
import sys, time
print('{"ok": {"describe": "drops", "capabilities": []}}', flush=True)
while True:
    print(end=" ", flush=True)
    time.sleep(0.1)
"""
    adapter = ProcessAdapter([sys.executable, "-c", drops], timeout_s=0.5)
    began = time.monotonic()
    try:
        with pytest.raises(EngineTimeout, match=r"no answer of the block manager within 0\.5 s"):
            adapter.num_free_blocks()
    finally:
        adapter.close()
    assert time.monotonic() - began < 10


def test_where_it_does_not_start_again_the_rest_is_not_run(worker: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from pabench.conformance.alloc.process import ProcessAdapter\n"
                    f"def adapter(): return ProcessAdapter({[sys.executable, str(worker), 'dies', 'once']!r})\n")
    run_suite(impl=f"{mine}:adapter", out=tmp_path / "out", profile="smoke", ids=["alloc/conservation"], quiet=True)
    plain, cached = load_results(tmp_path / "out").rows
    assert (plain.outcome, cached.outcome) == (Outcome.CRASH, Outcome.NOTRUN)
    assert "ended with status 1; last words: no second time" in cached.reason


@pytest.mark.parametrize(("how", "outcome", "says"), [
    ("", Outcome.PASS, ""),
    ("raises", Outcome.FAIL, "raised ManagerError: KeyError: 'no such sequence'"),
    ("dies", Outcome.CRASH, "it ended with status 7; last words: assertion failed: refcount"),
])
def test_it_is_asked_the_suite(worker: Path, tmp_path: Path, how: str, outcome: Outcome, says: str) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from pabench.conformance.alloc.process import ProcessAdapter\n"
                    f"def adapter(): return ProcessAdapter({[sys.executable, str(worker), how]!r})\n")
    run_suite(impl=f"{mine}:adapter", out=tmp_path / "out", profile="smoke", ids=["alloc/conservation"], quiet=True)
    plain, cached = load_results(tmp_path / "out").rows
    assert (plain.outcome, cached.outcome, cached.reason) == (outcome, Outcome.UNSUPPORTED, "it has no cache")
    assert says in plain.text


@pytest.mark.parametrize("command", [["no-such-program"], [sys.executable, "-c", "print('hello')"]])
def test_what_is_no_block_manager_is_said_at_once(command: list[str]) -> None:
    with pytest.raises(UsageError, match=r"cannot start 'no-such-program'|no block manager: "):
        ProcessAdapter(command)


@pytest.mark.parametrize(("says", "matters"), [
    ("def reset(self, pool): Manager(scheduler_block_size=2)", True),
    ("def complete(self, tokens): Manager(scheduler_block_size=2)", True),
    ("def cost(self, operation, seq, tokens, extra): Manager(scheduler_block_size=2)", False),
])
def test_a_worker_written_for_another_version_says_so_and_gives_no_verdict(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], says: str, matters: bool
) -> None:
    text = WORKER.format(adapters=str(data_dir("suites") / "adapters"), capabilities="scheduler")
    body, serve = text.split("serve(Bump())")[0], "serve(Other(), written_for=\"bump 1.0\")"
    other = f"""
def Manager(*, block_size): pass
class Other(Bump):
    def describe(self): return "bump 2.0"
    def add(self, request, prompt, output_tokens): pass
    def schedule(self): return {{"scheduled": [[0, 0, 3, [0, 1, 2]]], "preempted": []}}
    def complete(self, tokens): pass
    {says}
"""
    (tmp_path / "worker.py").write_text(f"{body}{other}{serve}\n")
    mine = tmp_path / "mine.py"
    mine.write_text("from pabench.conformance.alloc.process import ProcessAdapter\n"
                    f"def adapter(): return ProcessAdapter({[sys.executable, str(tmp_path / 'worker.py')]!r})\n")
    run = run_suite(impl=f"{mine}:adapter", out=tmp_path / "out", profile="smoke", ids=["alloc/conservation"])
    said = capfd.readouterr().err
    if matters:
        assert run == 2
        assert ("found bump 2.0; this worker is written for bump 1.0, and cannot reach it: TypeError: Manager() got an "
                "unexpected keyword argument 'scheduler_block_size'") in said
    else:
        assert (run, said) == (0, "")
