"""`allocator`, what a test of this level holds.

    allocator.every_trace(property, caching=True)

draws traces of operations, plays each on the manager and on the model, and asks `property` of each. The shortest
trace that breaks it is what the failure tells and the case file keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pabench.conformance.alloc.adapter import Pool
from pabench.conformance.alloc.play import Play
from pabench.conformance.alloc.schedule import Limits, Schedule
from pabench.conformance.failure import not_again
from pabench.conformance.implementation import ImplementationUnderTest, blamed, kept
from pabench.conformance.profiles import Profile
from pabench.conformance.targets import unsupported
from pabench.errors import RequirementFailed

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Property = Callable[[Play], None]
ALWAYS = ("allocate", "compute", "append", "free", "finish")
OPTIONAL = {"fork": ("fork",), "truncate": ("truncate",)}  # capability -> operations


@dataclass(frozen=True, slots=True)
class _Failed:
    """A trace that has broken a property, and how that was told."""

    trace: dict[str, Any]
    case: str
    log: list[str]
    error: RequirementFailed


class AllocatorUnderTest(ImplementationUnderTest):
    """The block manager under test, for one case."""

    def __init__(
        self, adapter: Any, profile: Profile, rng: np.random.Generator, drawn: Mapping[str, Any] | None
    ) -> None:
        super().__init__(adapter, profile, rng, drawn)
        self.trace: dict[str, Any] | None = None  # of a failure: what broke the property
        self._log: list[str] = []
        self._first: _Failed | None = None  # that a search met
        self._served: set[str] = set()

    def every_trace(
        self, asks: Property, *, caching: bool = False, window: bool = False, swap: bool = False,
        kinds: tuple[str, ...] | None = None, largest_block: int = 4, many_keys: bool = False,
        about: str = "",
    ) -> None:
        """Ask `asks` of as many traces as the profile says, or of the one of a case file. Raises CaseFailed.

        `kinds` are the operations that traces have (by default all that the manager can); `caching`, `window`, `swap`
        and `largest_block` say what pools have; `many_keys` that most prompts differ in their extra keys. `about` is an
        operation without which nothing is shown, or "hit": where all traces see it refused, or nothing found, the test
        is skipped as UNSUPPORTED.
        """
        from pabench.conformance.alloc.traces import pools, traces  # Hypothesis is heavy: only where it is used

        self.claim(Pool(8, 2, 16, caching=caching, window=4 if window else None, host_blocks=4 if swap else 0))
        pool = pools(caching=caching, window=window, swap=swap, largest_block=largest_block)
        operations = self.profile.operations
        self._ask(traces(pool, kinds or self._kinds(swap), operations, many_keys=many_keys), operations,
                  lambda trace: self._play(trace, asks))
        if about and about not in self._served and self.replayed is None:  # one trace passes by what it shows
            what = "nothing was found" if about == "hit" else f"no {about} was served"
            unsupported(f"{what} in all traces, though the manager says that it can")

    def every_schedule(self, asks: Callable[[Schedule], None], *, caching: bool, equal: bool = False) -> None:
        """Ask `asks` of the scheduler, on as many traces as the profile says or a case file's. Raises CaseFailed.

        `equal`: all requests of a trace have the same lengths.
        """
        from pabench.conformance.alloc.traces import schedules

        self.claim(Pool(8, 2, 6, caching=caching))
        operations = self.profile.operations // 2
        self._ask(schedules(operations, caching=caching, equal=equal), operations,
                  lambda trace: self._schedule(trace, asks))

    def _ask(
        self, strategy: SearchStrategy[dict[str, Any]], operations: int, play: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Play traces of `strategy`, or the one of a case file; the shortest that fails once more, to tell of it."""
        from pabench.conformance.alloc.search import search
        from pabench.conformance.search import reject

        self.asked = True

        played = 0

        def play_if_supported(trace: Mapping[str, Any]) -> None:
            nonlocal played
            with blamed(f"unsupported({trace['pool']})"):
                reasons = self._adapter.unsupported(trace["pool"])
            if reasons:
                reject()
            played += 1
            try:
                play(trace)
            except RequirementFailed as error:
                self._first = self._first or _Failed(_as_json(trace), self.case, self._log, error)
                raise
            except BaseException:  # it died, or the case's time is up: this is the trace to tell of
                self.trace = _as_json(trace)
                raise

        if self.replayed is not None:
            self.trace = kept(self.replayed, "trace")
        else:
            found = search(strategy, play_if_supported, traces=self.profile.traces,
                           seed=int(self.rng.integers(2**63)), shrink_s=self.profile.shrink_s)
            self.trace = None if found is None else _as_json(found)
            if not played:
                unsupported("the implementation supports none of the pools that were drawn")
            self.note = f"{self.profile.traces} traces of up to {operations} operations"
        if self.trace is not None:
            made = {"pool": Pool, "limits": Limits}
            play({name: made[name](**part) if name in made else part for name, part in self.trace.items()})
        if self._first is not None:  # what the search found has held just now: no pass, it hangs on more than the trace
            self.trace, self.case, self._log = self._first.trace, self._first.case, self._first.log
            raise not_again(self._first.error)

    def _schedule(self, trace: Mapping[str, Any], asks: Callable[[Schedule], None]) -> None:
        schedule = Schedule(self._adapter, trace["pool"], trace["limits"], trace["operations"])
        limits = trace["limits"]
        try:
            asks(schedule)
        finally:
            self._log = schedule.log
            head = (f"{_pool_text(schedule.pool)}; steps of at most {limits.max_num_batched_tokens} tokens and "
                    f"{limits.max_num_seqs} sequences")
            self.case = "\n".join([head, *(f"{i:>2}  {line}" for i, line in enumerate(schedule.log, 1))])

    def play(self, pool: Pool) -> Play:
        """A trace of one's own, begun: for what needs no search."""
        self.asked = True
        play = Play(self._adapter, pool, [])
        play.begin()
        self._log = play.log
        self.case = _pool_text(pool)
        return play

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """Whether the manager says that an idle pool holds so much."""
        with blamed(f"can_ever_hold({prompt_tokens}, {final_tokens}, {n})"):
            return bool(self._adapter.can_ever_hold(prompt_tokens, final_tokens, n))

    def block_keys(self, pool: Pool, tokens: Sequence[int], extra: Sequence[str]) -> list[bytes]:
        """What the whole blocks of a prompt are found by."""
        self.asked = True
        with blamed(f"block_keys({list(tokens)}, {list(extra)})"):
            return [bytes(key) for key in self._adapter.block_keys(pool, tokens, extra)]

    def slots(self, seq: int, start: int, stop: int) -> list[int]:
        """The index in the whole cache of each of a sequence's positions [start, stop)."""
        with blamed(f"slots({seq}, {start}, {stop})"):
            return [int(slot) for slot in self._adapter.slots(seq, start, stop)]

    def _kinds(self, swap: bool) -> tuple[str, ...]:
        more = [kind for capability, kinds in OPTIONAL.items() if self.can(capability) for kind in kinds]
        return (*ALWAYS, *more, *(("swap_out", "swap_in") if swap else ()))

    def _play(self, trace: Mapping[str, Any], asks: Property) -> None:
        play = Play(self._adapter, trace["pool"], trace["operations"])
        try:
            asks(play)
        finally:
            self._log = play.log
            self._served |= play.served
            self.case = "\n".join([_pool_text(play.pool), *(f"{i:>2}  {line}" for i, line in enumerate(play.log, 1))])

    def drawn(self) -> dict[str, Any]:
        """The trace itself: it needs no generator to be played again."""
        return {"trace": self.trace}

    def evidence(self) -> dict[str, Any]:
        """What was done, in words."""
        return {"log": self._log}


def _as_json(trace: Mapping[str, Any]) -> dict[str, Any]:
    """A trace as a case file has it."""
    return {name: part if name == "operations" else asdict(part) for name, part in trace.items()}


def _pool_text(pool: Pool) -> str:
    parts = [f"{pool.num_blocks} blocks of {pool.block_size}, sequences of at most {pool.max_tokens} tokens"]
    parts += ["prefix cache"] if pool.caching else []
    parts += [f"window of {pool.window}"] if pool.window is not None else []
    parts += [f"{pool.host_blocks} host blocks"] if pool.host_blocks else []
    return ", ".join(parts)
