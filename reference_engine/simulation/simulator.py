"""The clock: requests arrive, the engine's own scheduler chooses each step, the law says how long it took.

Between two events (an arrival, an end, memory running out) a batch that only decodes does the same step over and over.
The simulator takes such steps in one leap: their times and memory are still counted one by one, but the scheduler is
asked once. A leap changes nothing that can be seen, only the time it takes to simulate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from pabench.errors import UsageError
from reference_engine.config import EngineConfig
from reference_engine.memory.build import build_allocator
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step
from reference_engine.simulation.law import StepLaw
from reference_engine.simulation.outcome import Memory, Outcome, Tally
from reference_engine.simulation.workload import Workload

TOO_LONG = "prompt and output are longer than max_model_len"
TOO_BIG = "the KV cache is too small for it, even when empty"
LONGEST_LEAP = 4096  # steps: Ctrl-C and the progress line wait for a leap to end


class Simulator:
    """One engine, one workload, one law. `leap=False` asks the scheduler for every step: slow, and the same outcome.

    `observer` is called after each step with the memory at its end, before the sequences that ended in it are freed.
    """

    def __init__(
        self, config: EngineConfig, workload: Workload, law: StepLaw, *, leap: bool = True,
        observer: Callable[[Memory], None] | None = None,
    ) -> None:
        if workload.prefixes is not None and config.caches_prefixes:
            _check_blocks_divide(workload.prefixes.block_tokens, config.block_size)
        self.config, self.workload, self.law, self.observer = config, workload, law, observer
        self.allocator = build_allocator(config)
        self.scheduler = Scheduler(config, self.allocator)
        self.now = 0.0
        self._leaps = leap
        self._quiet = False         # the next step is one of all running sequences decoding, if there are blocks for it
        self._all_decode = False    # every running sequence has computed all but its last token
        self._runs_changed = False  # sequences joined or left since the external waste was counted
        self._next = 0            # request that arrives next
        self._starting: set[int] = set()  # sequences that have no token yet
        self._refused: Counter[str] = Counter()
        self._first_s = np.full(len(workload), np.nan)
        self._end_s = np.full(len(workload), np.nan)
        self._tally = Tally(config.num_blocks * config.block_size)
        self._external = 0
        self._generated = self._ended = 0

    def advance(self) -> bool:
        """Simulate some more: a step, or a leap of them. False when nothing is left to do."""
        self._admit_arrivals()
        if not self.scheduler.has_unfinished:
            if self._next == len(self.workload):
                return False
            self.now = self._next_arrival()  # idle until then
            self._tally.idle_until(self.now)
            return True
        if self._quiet and self._leaps:
            self._leap()
        else:
            self._step()
        return True

    # Requests come.

    def _admit_arrivals(self) -> None:
        """Queue who has arrived, in order. Of a long queue only as many as could be let in at once are made real."""
        waiting = self.scheduler.waiting
        while self._next < len(self.workload) and len(waiting) <= self.config.max_num_seqs:
            if self._next_arrival() > self.now:
                return
            request = self.workload.request(self._next, self.config.block_size)
            self._next += 1
            prompt, output = len(request.prompt), request.params.max_tokens
            if self.scheduler.reason_never_to_fit(prompt, output, 1) is not None:
                self._refused[TOO_LONG if prompt + output > self.config.max_model_len else TOO_BIG] += 1
                continue
            self.scheduler.add(request)
            self._starting.add(request.sequences[0].id)
            self._quiet = False

    def _next_arrival(self) -> float:
        return float(self.workload.arrival_s[self._next]) if self._next < len(self.workload) else float("inf")

    # Steps.

    def _step(self) -> None:
        """One step, chosen by the scheduler."""
        scheduler = self.scheduler
        waiting, preemptions = len(scheduler.waiting), scheduler.stats.preemptions
        step = scheduler.schedule()
        n, num_new = len(step.sequences), sum(step.num_new)
        preempted, joined = scheduler.stats.preemptions > preemptions, len(scheduler.waiting) < waiting
        self._runs_changed |= preempted or joined
        # Whoever waits now was tried and did not fit: neither will they in the next step, when no more is free. But a
        # step that wrote part of a prompt may have added to the prefix cache what they find then.
        if self.config.chunked_prefill and not self.config.caches_prefixes:
            has_tried = num_new < self.config.max_num_batched_tokens
        else:
            has_tried = num_new == n and self._all_decode and not joined
        self._quiet = has_tried and not preempted
        scheduler.complete(step)
        decodes = n if num_new == n else step.num_new.count(1)
        swapped = sum(len(copies) for kind, copies in step.moves if kind != "copy") * self.config.block_size
        context = sum([seq.num_computed for seq in step.sequences])
        took = self.law.seconds(num_new - decodes, decodes, context, swapped)
        self.now += took
        memory = self._memory()
        self._tally.add(took, memory)
        if self.observer is not None:
            self.observer(memory)
        self._settle(step, may_start=joined or preempted or not self._all_decode)

    def _settle(self, step: Step, *, may_start: bool) -> None:
        """A token for each sequence that has computed all it had. The last one ends it, and is never fed back."""
        ready = [seq for seq in step.sequences if seq.num_computed == seq.num_tokens]
        if may_start:
            first = list(self._starting.intersection([seq.id for seq in ready]))
            self._starting.difference_update(first)
            self._first_s[first] = self.now
        ended = []
        for seq in ready:
            seq.num_tokens = num_tokens = seq.num_tokens + 1
            if num_tokens > seq.final_tokens:
                ended.append(seq)
        made = len(ready)
        self._generated += made
        self._all_decode = made == len(self.scheduler.running)
        self._quiet &= self._all_decode and not (ended and self.scheduler.waiting)
        for seq in ended:
            self._runs_changed = True
            self._end_s[seq.id] = self.now
            seq.request.sequences.clear()
            self.scheduler.finish(seq)
        self._ended += len(ended)

    # Memory.

    def _memory(self) -> Memory:
        """Where the slots are, as allocator.split() says it, from sums that are quick to take.

        Sequences share full blocks only (nobody forks here), so what is empty is each one's own.
        """
        size = self.config.block_size
        running = self.scheduler.running
        owned = (self.config.num_blocks - self.allocator.num_free_blocks) * size
        internal = empty = 0
        if self.config.kv == "paged":
            for seq in running:
                held = seq.num_slots + -seq.num_slots % size
                empty += held - seq.num_computed
                if held > seq.final_tokens:
                    internal += held - seq.final_tokens
            states = owned - empty
        else:
            states = sum([seq.num_computed for seq in running])
            internal = owned - sum([seq.final_tokens for seq in running])
            if self._runs_changed:
                self._external = self.allocator.split(self.scheduler.written()).external_waste
                self._runs_changed = False
        waiting = bool(self.scheduler.waiting)
        return Memory(self.now, len(running), waiting, states, owned - states - internal, internal, self._external,
                      self.config.num_blocks * size - owned)

    # Leaps.

    def _leap(self) -> None:
        """As many steps as there are before anybody ends, arrives or lacks a block: all running sequences decode."""
        running = list(self.scheduler.running)
        most = min(min([seq.final_tokens - seq.num_computed for seq in running]), LONGEST_LEAP)
        memory = self._memory()
        growth = self._growth(running, most)
        steps = self._count_steps(running, memory, growth, most)
        if steps == 0:  # the next step needs more blocks than there are: the scheduler knows what to do
            self._step()
            return
        step = Step(running, [steps] * len(running))
        for seq in running:
            seq.num_tokens += steps - 1
            if seq.num_slots < seq.num_tokens:
                self.scheduler.grow(seq, step)
        self.scheduler.complete(step)
        self._generated += (steps - 1) * len(running)
        self._settle(step, may_start=False)

    def _growth(self, running: list[Sequence], most: int) -> dict[int, tuple[int, int]]:
        """Which of the next `most` steps take blocks, from 0: (blocks, slots of them that will never be used)."""
        growth: dict[int, tuple[int, int]] = {}
        if self.config.kv != "paged":
            return growth
        size = self.config.block_size
        for seq in running:
            end = seq.num_slots + -seq.num_slots % size
            at = end - seq.num_computed
            while at < most:
                end += size
                blocks, internal = growth.get(at, (0, 0))
                growth[at] = blocks + 1, internal + max(end - seq.final_tokens, 0)
                at += size
        return growth

    def _count_steps(
        self, running: list[Sequence], memory: Memory, growth: dict[int, tuple[int, int]], most: int
    ) -> int:
        """Let the clock and the tally go through up to `most` steps. Returns how many there were."""
        n, size = len(running), self.config.block_size
        context = sum([seq.num_computed for seq in running])
        _, _, waiting, states, reserved, internal, external, free = memory
        arrival = self._next_arrival()
        if len(self.scheduler.waiting) > self.config.max_num_seqs:
            arrival = float("inf")  # the queue is long enough to let nobody in yet
        seconds, add, observer, now = self.law.seconds, self._tally.add, self.observer, self.now
        steps = 0
        while steps < most and now < arrival:
            if steps in growth:
                blocks, unused = growth[steps]
                if blocks * size > free:
                    break
                free -= blocks * size
                internal += unused
                reserved += blocks * size - unused
            context += n
            states += n
            reserved -= n
            took = seconds(0, n, context)
            now += took
            steps += 1
            memory = Memory(now, n, waiting, states, reserved, internal, external, free)
            add(took, memory)
            if observer is not None:
                observer(memory)
        self.now = now
        return steps

    # What came of it.

    @property
    def num_done(self) -> int:
        """Requests that ended or were refused."""
        return self._ended + self._refused.total()

    def outcome(self, wall_s: float, *, interrupted: bool = False) -> Outcome:
        """What was simulated so far."""
        stats = self.scheduler.stats
        return Outcome(
            workload=self.workload, first_s=self._first_s, end_s=self._end_s, refused=dict(self._refused),
            virtual_s=self.now, wall_s=wall_s, generated_tokens=self._generated, preemptions=stats.preemptions,
            recomputed_tokens=stats.recomputed_tokens, swapped_out_blocks=stats.swapped_out_blocks,
            swapped_in_blocks=stats.swapped_in_blocks, prefix_queries=stats.prefix_queries,
            prefix_hits=stats.prefix_hits, tally=self._tally, interrupted=interrupted,
        )


def _check_blocks_divide(hash_block_tokens: int, block_size: int) -> None:
    if hash_block_tokens % block_size:
        raise UsageError(f"the block size is {block_size}, and the trace hashes prompts in blocks of "
                         f"{hash_block_tokens} tokens: expected a divisor of that, or --no-enable-prefix-caching")
