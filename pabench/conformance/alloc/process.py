"""A block manager in a process of its own, in any language: JSON objects, one a line, on its standard streams.

    > {"op": "hello"}
    < {"ok": {"describe": "acme 1.2", "capabilities": ["paged", "prefix_cache"]}}
    > {"op": "reset", "pool": {"num_blocks": 4, "block_size": 2, "max_tokens": 4, "caching": true, "window": null, …}}
    < {"ok": null}
    > {"op": "allocate", "seq": 0, "tokens": [0, 1, 1], "extra": []}
    < {"ok": 2}
    > {"op": "append", "seq": 0, "tokens": [1]}
    < {"ok": [[3, 0]]}

The fields are the parameters of `AllocatorAdapter`'s methods and of those that a capability brings (adapter.py lists
them all), `ok` is what they return: null for a refusal, pairs for copies, hexadecimal digits for keys. `swap_in`
returns a list of the tokens found and the pairs: [2, [[0, 5]]]. `{"error": "text"}` is a failure of the manager. What
it writes to standard error is told when it dies. It is killed when an answer takes too long or is not waited for, and
started again, and asked `hello` first, before it is next asked.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from pabench.conformance.alloc.adapter import Copies, Pool
from pabench.conformance.alloc.schedule import Limits, Plan, Planned
from pabench.engines.cleaning import clean
from pabench.errors import EngineDied, EngineTimeout, UsageError

_HELLO_S = 120.0    # engines take long to import
_TAIL_BYTES = 4000
_MAX_LINE_BYTES = 1 << 20


class ManagerError(Exception):
    """What the process says went wrong in it."""


class ProcessScheduler:
    """See SchedulerAdapter. A plan is {"scheduled": [[request, num_computed, num_new, blocks], …], "preempted": []}."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def add(self, request: int, prompt: Sequence[int], output_tokens: int) -> str | None:
        """See SchedulerAdapter."""
        refusal = self._call("add", request=request, prompt=list(prompt), output_tokens=output_tokens)
        return None if refusal is None else clean(str(refusal))

    def abort(self, request: int) -> None:
        """See SchedulerAdapter."""
        self._call("abort", request=request)

    def schedule(self) -> Plan:
        """See SchedulerAdapter."""
        plan = self._call("schedule")
        return Plan([Planned(*each) for each in plan["scheduled"]], list(plan["preempted"]))

    def complete(self, tokens: Mapping[int, int]) -> None:
        """See SchedulerAdapter. Pairs of request and token."""
        self._call("complete", tokens=[[request, token] for request, token in tokens.items()])


class ProcessAdapter:
    """See AllocatorAdapter. `command` starts the process; each answer has to come within `timeout_s` seconds."""

    bounds_answers = True  # nobody else may cut one off: the next question would get its answer

    def __init__(
        self, command: Sequence[str], *, env: dict[str, str] | None = None, timeout_s: float = 10.0
    ) -> None:
        self._command, self._env, self._timeout_s = list(command), env, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # what it writes to standard error
        self._pending = b""
        try:
            told = self._start()
            self.capabilities = frozenset(map(str, told["capabilities"]))
            self._described = clean(str(told["describe"]))
        except (EngineDied, EngineTimeout, ManagerError, KeyError, TypeError) as error:
            self.close()
            raise UsageError(f"{command[0]}: no block manager: {type(error).__name__}: {error}") from error

    def make_ready(self) -> None:
        """Start the process again where it has ended. Raises EngineDied or EngineTimeout when it does not say hello."""
        if self._process is not None:
            return
        try:
            self._start()
        except ManagerError as error:
            self.close()
            raise EngineDied(f"the block manager's process does not begin again: {error}") from error

    def describe(self) -> str:
        """See AllocatorAdapter."""
        return self._described

    def unsupported(self, case: Pool) -> list[str]:
        """See AllocatorAdapter."""
        return [str(reason) for reason in self._call("unsupported", pool=asdict(case))]

    def reset(self, pool: Pool) -> None:
        """See AllocatorAdapter."""
        self._call("reset", pool=asdict(pool))

    def allocate(self, seq: int, tokens: Sequence[int], extra: Sequence[str] = ()) -> int | None:
        """See AllocatorAdapter."""
        found: int | None = self._call("allocate", seq=seq, tokens=list(tokens), extra=list(extra))
        return found

    def append(self, seq: int, tokens: Sequence[int]) -> Copies | None:
        """See AllocatorAdapter."""
        return _copies(self._call("append", seq=seq, tokens=list(tokens)))

    def free(self, seq: int) -> None:
        """See AllocatorAdapter."""
        self._call("free", seq=seq)

    def block_table(self, seq: int) -> Sequence[Hashable]:
        """See AllocatorAdapter."""
        table: list[Hashable] = self._call("block_table", seq=seq)
        return table

    def num_free_blocks(self) -> int:
        """See AllocatorAdapter."""
        return int(self._call("num_free_blocks"))

    # With a capability of that name, or that needs them ------------------------------------------------------------

    def computed(self, seq: int, num_tokens: int) -> None:
        """The first `num_tokens` tokens of a sequence have been computed: their whole blocks may be found."""
        self._call("computed", seq=seq, num_tokens=num_tokens)

    def fork(self, parent: int, child: int) -> Copies | None:
        """A second sequence with the contents of the first."""
        return _copies(self._call("fork", parent=parent, child=child))

    def truncate(self, seq: int, num_tokens: int) -> None:
        """Tokens behind the first `num_tokens` are taken back."""
        self._call("truncate", seq=seq, num_tokens=num_tokens)

    def cost(self, operation: str, seq: int, tokens: Sequence[int], extra: Sequence[str] = ()) -> int | None:
        """Blocks that "allocate" or "append" would take; None: it would be refused."""
        cost: int | None = self._call("cost", operation=operation, seq=seq, tokens=list(tokens), extra=list(extra))
        return cost

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """Whether an idle pool holds n sequences forked behind a prompt."""
        return bool(self._call("can_ever_hold", prompt_tokens=prompt_tokens, final_tokens=final_tokens, n=n))

    def swap_out(self, seq: int, num_computed: int) -> Copies | None:
        """To host memory: pairs of a block and a host block."""
        return _copies(self._call("swap_out", seq=seq, num_computed=num_computed))

    def swap_in(self, seq: int) -> tuple[int, Copies] | None:
        """And back: tokens that were found, and pairs of a host block and a block for the rest."""
        back = self._call("swap_in", seq=seq)
        return None if back is None else (int(back[0]), _copies(back[1]) or [])

    def slots(self, seq: int, start: int, stop: int) -> list[int]:
        """The index in the whole cache of each of these positions."""
        return [int(slot) for slot in self._call("slots", seq=seq, start=start, stop=stop)]

    def slide(self, seq: int, position: int) -> None:
        """Positions before `position` are not reached any more."""
        self._call("slide", seq=seq, position=position)

    def block_keys(self, pool: Pool, tokens: Sequence[int], extra: Sequence[str]) -> list[bytes]:
        """What the whole blocks of a prompt are found by."""
        keys = self._call("block_keys", pool=asdict(pool), tokens=list(tokens), extra=list(extra))
        return [bytes.fromhex(key) for key in keys]

    def scheduler(self, pool: Pool, limits: Limits) -> ProcessScheduler:
        """The process's scheduler, with an empty pool."""
        self._call("scheduler", pool=asdict(pool), limits=asdict(limits))
        return ProcessScheduler(self._call)

    def close(self) -> None:
        """End the process."""
        process, self._process, self._pending = self._process, None, b""
        if process is not None:
            process.kill()
            process.wait()
        for stream in (self._errors, *((process.stdin, process.stdout) if process else ())):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._errors = None

    def _call(self, op: str, **fields: Any) -> Any:
        self.make_ready()
        return self._ask({"op": op, **fields}, self._timeout_s)

    def _start(self) -> Any:
        """Start the process; what it says to `hello`, which takes as long as its imports do."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=self._errors, env=self._env)
        except OSError as error:
            self.close()
            raise UsageError(f"cannot start {self._command[0]!r}: {error.strerror}") from error
        return self._ask({"op": "hello"}, _HELLO_S)

    def _ask(self, question: dict[str, Any], timeout_s: float) -> Any:
        process = self._process
        assert process is not None, "it was started"
        assert process.stdin is not None, "it is a pipe"
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(self._read_line(process, timeout_s))
        except (OSError, ValueError) as error:
            raise self._dead(question["op"], str(error)) from error
        except BaseException:  # a case's alarm, say: what it still answers would be taken for the next answer
            self.close()
            raise
        if "error" in answer:
            raise ManagerError(clean(str(answer["error"]), 1000))
        return answer.get("ok")

    def _read_line(self, process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        """One line of the answer. Raises EngineTimeout, and EOFError's kin ValueError where there is none."""
        assert process.stdout is not None, "it is a pipe"
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise EngineTimeout(f"no answer of the block manager within {timeout_s:g} s")
                piece = process.stdout.read1(_MAX_LINE_BYTES)  # type: ignore[attr-defined]
                if not piece or len(self._pending) > _MAX_LINE_BYTES:
                    raise ValueError("its output ended" if not piece else "an answer without an end")
                self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _dead(self, op: str, why: str) -> EngineDied:
        """How it ended, and its last words. The next call starts it anew."""
        process, errors = self._process, self._errors
        assert process is not None, "it was asked"
        assert errors is not None, "it was started"
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            status = process.poll()
            errors.seek(max(0, errors.seek(0, 2) - _TAIL_BYTES))
            lines = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        finally:
            self.close()
        ended = "it still ran" if status is None else f"it ended with status {status}"
        words = f"; last words: {clean(lines[-1])}" if lines else ""
        return EngineDied(f"the block manager's process broke at {op!r}: {clean(why)}; {ended}{words}")


def _copies(answer: list[list[Hashable]] | None) -> Copies | None:
    return None if answer is None else [(source, target) for source, target in answer]
