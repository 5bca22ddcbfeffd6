"""Continuous batching: who runs in the next step, and who waits.

First come, first served. A step holds one token of each decoding sequence, then as much of the unfinished prompts,
then as much of newly admitted ones, as `max_num_batched_tokens` allows. When a decoding sequence needs a block and none
is free, the last to arrive is preempted: it gives up its blocks and later computes its tokens, the generated ones
too, as if all were prompt. The first to arrive is therefore never preempted while others run, and always ends.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import Allocator, IntegrityError
from reference_engine.memory.pool import BlockCopy
from reference_engine.scheduling.sequence import Request, Sequence, Status


@dataclass(slots=True)
class Step:
    """What one forward pass computes: `num_new[i]` >= 1 next tokens of `sequences[i]`, after the copies."""

    sequences: list[Sequence] = field(default_factory=list)
    num_new: list[int] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)

    def add(self, seq: Sequence, num_new: int) -> None:
        """Take a sequence in."""
        self.sequences.append(seq)
        self.num_new.append(num_new)


class Scheduler:
    """Queues of waiting and running sequences, both in order of arrival."""

    def __init__(self, config: EngineConfig, allocator: Allocator) -> None:
        self.config, self.allocator = config, allocator
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def reason_never_to_fit(self, prompt_tokens: int, max_tokens: int, n: int) -> str | None:
        """Why a request could never be served, or None when an idle engine could. Such a one must not queue."""
        total = prompt_tokens + max_tokens
        if total > self.config.max_model_len:
            return (f"this model's maximum context length is {self.config.max_model_len} tokens, the request asks for "
                    f"{prompt_tokens} prompt + {max_tokens} output tokens")
        if n > self.config.max_num_seqs:
            return f"n is {n}, this engine runs at most {self.config.max_num_seqs} sequences at once"
        if not self.allocator.can_ever_hold(prompt_tokens, total - 1, n):
            return (f"n = {n} sequences of {prompt_tokens} prompt + {max_tokens} output tokens do not fit into the KV "
                    f"cache of {self.allocator.num_blocks} blocks of {self.allocator.block_size} tokens")
        return None

    def room(self, prompt_tokens: int, n: int) -> int:
        """The longest output that a request with this prompt could ask for; 0 where there is none."""
        lengths = range(1, self.config.max_model_len - prompt_tokens + 1)
        return bisect.bisect_left(  # the longer, the less it fits: the first that never does
            lengths, True, key=lambda length: self.reason_never_to_fit(prompt_tokens, length, n) is not None
        )

    def add(self, request: Request) -> None:
        """Queue the sequences of a request."""
        for seq in request.sequences:
            self._enqueue(seq)

    def _enqueue(self, seq: Sequence) -> None:
        seq.status = Status.WAITING
        bisect.insort(self.waiting, seq, key=lambda s: s.order)

    def schedule(self) -> Step:
        """Choose the next step. Empty only when nothing is left to do."""
        step = Step()
        preempted = self._schedule_decodes(step)
        budget = self.config.max_num_batched_tokens - len(step.sequences)
        budget = self._schedule_prefills(step, budget)
        if not preempted:  # admitting at once would only take the blocks that were just freed
            self._admit(step, budget)
        return step

    def _schedule_decodes(self, step: Step) -> bool:
        """One token of each sequence that has computed all but its last. Returns whether any was preempted."""
        before = self.num_preemptions
        at = 0
        while at < len(self.running):  # preempting shortens the list from its end
            seq = self.running[at]
            if len(seq.tokens) - seq.num_computed == 1:
                copies = self._grow(seq)
                if copies is None:
                    break  # seq itself was the last to arrive
                step.add(seq, 1)
                step.copies += copies
            at += 1
        return self.num_preemptions > before

    def _grow(self, seq: Sequence) -> list[BlockCopy] | None:
        """A slot for the last token, at the cost of those who came last. None: `seq` is preempted itself."""
        if seq.num_slots == len(seq.tokens):
            return []
        while (copies := self.allocator.append(seq.id)) is None:
            victim = self._victim()
            self.preempt(victim)
            if victim is seq:
                return None
        seq.num_slots += 1
        return copies

    def _victim(self) -> Sequence:
        """Who gives way when memory is out."""
        return self.running[-1]

    def preempt(self, seq: Sequence) -> None:
        """Take a running sequence's blocks; it waits, and will compute all its tokens again."""
        self._release(seq)
        self.num_preemptions += 1
        self._enqueue(seq)

    def _schedule_prefills(self, step: Step, budget: int) -> int:
        """Go on with prompts that were begun. Returns what is left of the budget."""
        for seq in self.running:
            missing = len(seq.tokens) - seq.num_computed
            if missing > 1 and budget > 0:
                step.add(seq, min(missing, budget))
                budget -= step.num_new[-1]
        return budget

    def _admit(self, step: Step, budget: int) -> None:
        """Let waiting sequences in, in order, until one does not fit."""
        width = sum(seq.width for seq in self.running)
        while self.waiting and budget > 0:
            seq = self.waiting[0]
            if width + seq.width > self.config.max_num_seqs:
                return
            if not self.allocator.allocate(seq.id, len(seq.tokens), seq.request.final_tokens):
                return
            self.waiting.pop(0)
            seq.status, seq.num_slots = Status.RUNNING, len(seq.tokens)
            bisect.insort(self.running, seq, key=lambda s: s.order)
            width += seq.width
            step.add(seq, min(len(seq.tokens), budget))
            budget -= step.num_new[-1]

    def fork(self, parent: Sequence, child: Sequence) -> list[BlockCopy]:
        """Start `child` from what `parent` has computed; do the copies at once. Out of memory, the child waits."""
        copies = self.allocator.fork(parent.id, child.id)
        parent.forks_due -= 1
        if copies is None:
            self._enqueue(child)
            return []
        child.status = Status.RUNNING
        child.num_computed, child.num_slots = parent.num_computed, parent.num_slots
        bisect.insort(self.running, child, key=lambda s: s.order)
        return copies

    def finish(self, seq: Sequence) -> None:
        """End a sequence, wherever it is, and free what it holds. Ending it twice does nothing."""
        if seq.status is Status.RUNNING:
            self._release(seq)
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
        seq.status = Status.FINISHED

    def _release(self, seq: Sequence) -> None:
        """Take a sequence from the running ones and free its blocks."""
        self.running.remove(seq)
        self.allocator.free(seq.id)
        seq.num_computed = seq.num_slots = 0

    def abort(self, request: Request) -> None:
        """End all unfinished sequences of a request."""
        for seq in request.sequences:
            self.finish(seq)
        request.sequences.clear()

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.waiting or self.running)

    def written(self) -> dict[int, int]:
        """Sequence id -> tokens whose keys and values are written, of all that hold blocks."""
        return {seq.id: seq.num_computed for seq in self.running}

    def check_integrity(self) -> None:
        """Raise IntegrityError unless queues and allocator agree."""
        self.allocator.check_integrity()
        for seq in self.running:
            blocks = len(self.allocator.block_table(seq.id))
            if not seq.num_computed <= seq.num_slots <= blocks * self.allocator.block_size:
                raise IntegrityError(f"sequence {seq.id} has computed {seq.num_computed} tokens in {seq.num_slots} "
                                     f"slots of {blocks} blocks")
        orders = [[seq.order for seq in queue] for queue in (self.waiting, self.running)]
        if any(order != sorted(order) for order in orders):
            raise IntegrityError(f"queues are out of order: waiting {orders[0]}, running {orders[1]}")
