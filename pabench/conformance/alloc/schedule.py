"""A scheduler under test, driven step by step beside a model of what its blocks hold.

    add    prompt, output    a request comes, that wants so many tokens
    step                     the scheduler chooses a step, which is computed: each sequence that has no token left to
                             compute gets its next one
    abort  i                 the client of request i leaves

`i` counts the unfinished requests, modulo their number. When a trace is at its end, steps go on until all that was
accepted has ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pabench.conformance.alloc.adapter import Pool
from pabench.conformance.alloc.model import Held, Memory, Prefixes
from pabench.conformance.implementation import blamed
from pabench.conformance.time_limits import ended_within

_IDLE_STEPS = 2  # in a row, that a scheduler may need to sort itself out after a preemption
_STEP_S = 5.0    # that choosing a step of a tiny pool may take: more is an endless loop
_NEXT_TOKENS = (0, 1)  # what is generated: the request's number decides, so that prompts of others may meet it


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one step: tokens to compute, and sequences."""

    max_num_batched_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class Planned:
    """One request of a step: the `num_new` tokens behind `num_computed`, in the blocks of its table."""

    request: int
    num_computed: int
    num_new: int
    block_table: Sequence[Hashable]  # None where one was given up


@dataclass(frozen=True, slots=True)
class Plan:
    """What `schedule` has chosen. `preempted`: requests that gave up their blocks for it."""

    scheduled: Sequence[Planned]
    preempted: Sequence[int] = ()


class SchedulerAdapter(Protocol):
    """What `AllocatorAdapter.scheduler(pool, limits)` returns: its pool is empty, and requests are whole numbers."""

    def add(self, request: int, prompt: Sequence[int], output_tokens: int) -> str | None:
        """Queue a request, which ends with so many tokens. Why it is refused for good; None: it is not."""
        ...

    def abort(self, request: int) -> None:
        """End a request, wherever it is."""
        ...

    def schedule(self) -> Plan:
        """Choose the next step."""
        ...

    def complete(self, tokens: Mapping[int, int]) -> None:
        """The step is computed: a token for each request that has no token left to compute."""
        ...


@dataclass(slots=True, eq=False)
class Wanted(Held):
    """A request as the model knows it: what it has computed, and how long it gets."""

    num_prompt: int = 0
    final_tokens: int = 0  # prompt and output

    @property
    def has_ended(self) -> bool:
        """Its last token is there; it is never fed back."""
        return self.num_tokens >= self.final_tokens


@dataclass(slots=True)
class Moment:
    """A step was chosen: its `plan` and what the model says of it; or it was `computed`; or an add, and its refusal."""

    plan: Plan | None = None
    refusal: str | None = None
    wanted: Wanted | None = None                             # add: the request
    chosen: list[tuple[Planned, Wanted | None]] = field(default_factory=list)
    computed: bool = False                                   # its writes are done, its tokens not told yet


class Schedule:
    """One trace on one scheduler. Iterate over it: a step is chosen, then computed, while the loop goes on."""

    def __init__(self, adapter: Any, pool: Pool, limits: Limits, operations: Sequence[list[Any]]) -> None:
        self.adapter, self.pool, self.limits, self.operations = adapter, pool, limits, operations
        self.prefixes, self.memory = Prefixes(), Memory(pool.block_size)
        self.unfinished: dict[int, Wanted] = {}
        self.log: list[str] = []
        self.idle_steps = 0    # in a row, that chose nothing while a request was unfinished
        self.drained = 0       # steps since the trace was at its end
        self.longest_drain = 0  # steps in which all that is left then has to end: one alone after the other, twice
        self._count = 0
        self._scheduler: SchedulerAdapter

    def __iter__(self) -> Iterator[Moment]:
        """Begin, do one operation after the other, and let all that is left end."""
        with blamed("scheduler"):
            self._scheduler = self.adapter.scheduler(self.pool, self.limits)
        for name, *arguments in self.operations:
            if name == "add":
                yield self._add(*arguments)
            elif name == "step":
                yield from self._step()
            elif self.unfinished:
                self._abort(list(self.unfinished)[arguments[0] % len(self.unfinished)])
        self.longest_drain = 2 * sum(wanted.final_tokens for wanted in self.unfinished.values()) + 8
        while self.unfinished:
            self.drained += 1
            yield from self._step()

    @property
    def stands_still(self) -> bool:
        """Whether nothing is computed any more, or what is never comes to an end."""
        return self.idle_steps > _IDLE_STEPS or self.drained > self.longest_drain

    @property
    def waiting_text(self) -> str:
        """Who has not ended, in words."""
        names = ", ".join(wanted.name for wanted in self.unfinished.values())
        return f"{len(self.unfinished)} requests wait: {names}" if len(self.unfinished) != 1 else f"{names} waits"

    def fits(self, wanted: Wanted) -> bool:
        """Whether an idle engine can serve a request: its last token needs no slot."""
        slots = self.pool.num_blocks * self.pool.block_size
        return wanted.final_tokens <= self.pool.max_tokens and wanted.final_tokens - 1 <= slots

    def _add(self, prompt: Sequence[int], output_tokens: int) -> Moment:
        number, self._count = self._count, self._count + 1
        prefix, prefixes = self.prefixes.root(()), []
        for token in prompt:
            prefix = self.prefixes.behind(prefix, token)
            prefixes.append(prefix)
        wanted = Wanted(number, f"R{number}", (), list(prompt), prefixes, num_prompt=len(prompt),
                        final_tokens=len(prompt) + output_tokens)
        with blamed(f"add({wanted.name}, {len(prompt)} tokens, {output_tokens} of output)"):
            refusal = self._scheduler.add(number, list(prompt), output_tokens)
        if refusal is None:
            self.unfinished[number] = wanted
        said = f"add {wanted.name}: {' '.join(map(str, prompt))}, {output_tokens} of output"
        self.log.append(said if refusal is None else f"{said} -> refused: {refusal}")
        return Moment(refusal=refusal, wanted=wanted)

    def _abort(self, number: int) -> None:
        wanted = self.unfinished.pop(number)
        self.log.append(f"abort {wanted.name}")
        with blamed(f"abort({wanted.name})"):
            self._scheduler.abort(number)

    def _step(self) -> Iterator[Moment]:
        own_limit = getattr(self.adapter, "bounds_answers", False)
        with (contextlib.nullcontext() if own_limit else ended_within(_STEP_S, "schedule()", lambda: self.waiting_text),
              blamed("schedule()")):
            plan = self._scheduler.schedule()
        self.log.append(self._words(plan))
        for number in plan.preempted:
            if number in self.unfinished:
                self.unfinished[number].table, self.unfinished[number].num_computed = [], 0
        chosen = [(planned, self.unfinished.get(planned.request)) for planned in plan.scheduled]
        for planned, wanted in chosen:
            if wanted is not None:
                wanted.table = list(planned.block_table)
        self.idle_steps = 0 if chosen or not self.unfinished else self.idle_steps + 1
        yield Moment(plan=plan, chosen=chosen)
        # All writes come first: within a step one sequence may read what another writes.
        for planned, wanted in chosen:
            if wanted is not None:
                self._write(planned, wanted)
        yield Moment(computed=True)
        tokens = {planned.request: self._next(wanted) for planned, wanted in chosen if wanted is not None}
        with blamed("complete()"):
            self._scheduler.complete({number: token for number, token in tokens.items() if token is not None})

    def _write(self, planned: Planned, wanted: Wanted) -> None:
        size = self.pool.block_size
        for position in range(planned.num_computed, planned.num_computed + planned.num_new):
            if position < wanted.num_tokens and position // size < len(wanted.table):  # or a check tells
                self.memory.write(wanted.table[position // size], position % size, wanted.prefixes[position])
        wanted.num_computed = planned.num_computed + planned.num_new

    def _next(self, wanted: Wanted) -> int | None:
        """The next token of a request; None where it has tokens left to compute."""
        if wanted.num_computed < wanted.num_tokens:
            return None
        token = _NEXT_TOKENS[wanted.seq % len(_NEXT_TOKENS)]
        wanted.tokens.append(token)
        wanted.prefixes.append(self.prefixes.behind(wanted.prefixes[-1], token))
        if wanted.has_ended:
            del self.unfinished[wanted.seq]
        return token

    def _words(self, plan: Plan) -> str:
        rows = [f"R{each.request} {each.num_computed}+{each.num_new} in blocks "
                f"{' '.join('-' if block is None else str(block) for block in each.block_table) or 'none'}"
                for each in plan.scheduled]
        gone = [f"preempted {', '.join(f'R{number}' for number in plan.preempted)}"] if plan.preempted else []
        return f"step: {'; '.join([*rows, *gone]) or 'nothing'}"
