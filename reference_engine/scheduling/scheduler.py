"""Continuous batching: who runs in the next step, who waits, and who gives way when blocks run out.

A step holds one token of each decoding sequence, then as much of the unfinished prompts, then as much of newly
admitted ones, as `max_num_batched_tokens` allows. Both queues stand in one order, by priority and arrival.
When a decoding sequence needs a block and none is free, the last in order is preempted: it gives up its blocks, and
either computes its tokens again later, the generated ones too, as if all were prompt (recompute), or gets its blocks
back from host memory (swap). The first in order is therefore never preempted while others run, and always ends.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import Allocator, IntegrityError
from reference_engine.memory.prefix_cache import extend_keys, root_key
from reference_engine.scheduling.queues import Queues, in_order
from reference_engine.scheduling.sequence import Sequence, Status
from reference_engine.scheduling.step import Step


@dataclass(slots=True)
class SchedulerStats:
    """What the scheduler has done since it started. Tokens and blocks, each time they were."""

    preemptions: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    recomputed_tokens: int = 0  # computed once more after a preemption
    prefix_queries: int = 0     # prompt tokens looked up in the prefix cache, once a request
    prefix_hits: int = 0


class Scheduler(Queues):
    """Makes steps out of the queues. `window`: how far the model's attention looks back."""

    def __init__(self, config: EngineConfig, allocator: Allocator, *, window: int | None = None) -> None:
        super().__init__(config, allocator)
        self.window = window
        self.stats = SchedulerStats()
        self._caches_prefixes = config.caches_prefixes

    def reason_never_to_fit(self, prompt_tokens: int, max_tokens: int, n: int) -> str | None:
        """Why a request could never be served, or None when an idle engine could. Such a one must not queue."""
        total = prompt_tokens + max_tokens
        if total > self.config.max_model_len:
            return (f"this model's maximum context length is {self.config.max_model_len} tokens, the request asks for "
                    f"{prompt_tokens} prompt + {max_tokens} output tokens")
        if n > self.config.max_num_seqs:
            return f"n (or beam_width) is {n}, this engine runs at most {self.config.max_num_seqs} sequences at once"
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

    def schedule(self) -> Step:
        """Choose the next step. Empty only when nothing is left to do."""
        step = Step()
        self._fill(step)
        while not step.sequences and self.running:
            # Each of the running ones waits for memory, or (a beam) for one that does. The last gives way. In the end
            # the first that has something to compute is alone, and fits.
            self._preempt(self.running[-1], step)
            self._fill(step)
        if not step.sequences and self.waiting:
            raise IntegrityError(f"nothing runs, yet sequence {self.waiting[0].id} with {self.waiting[0].num_tokens} "
                                 f"tokens does not fit into {self.allocator.num_free_blocks} free of "
                                 f"{self.allocator.num_blocks} blocks")
        return step

    def _fill(self, step: Step) -> None:
        budget = self.config.max_num_batched_tokens
        if not self.config.chunked_prefill:
            self._admit(step, budget)
            if step.sequences:
                return
        preemptions = self.stats.preemptions
        prefilling, stalled = self._schedule_decodes(step)
        budget -= sum(step.num_new) + sum(step.draft_room.values())
        budget = self._schedule_prefills(step, prefilling, budget)
        # Whom to admit now would only take the blocks that were just freed, or that someone waits for.
        if (self.stats.preemptions == preemptions and not stalled) or not step.sequences:
            self._admit(step, budget)

    def _schedule_decodes(self, step: Step) -> tuple[list[Sequence], bool]:
        """One token of each sequence that has computed all but its last.

        Returns the sequences whose prompts are unfinished, and whether anyone lacks a slot and waits for it.
        """
        prefilling, stalled = [], False
        running, sequences, num_new = self.running, step.sequences, step.num_new
        lookahead, spare = self.config.lookahead, self.config.max_num_batched_tokens - self.config.max_num_seqs
        at = 0
        while at < len(running):  # preempting shortens the list from its end
            seq = running[at]
            at += 1
            missing = seq.num_tokens - seq.num_computed
            if missing > 1:
                prefilling.append(seq)
            elif missing == 1:
                if seq.num_slots < seq.num_tokens and not self.grow(seq, step):
                    stalled = True  # or preempted itself: then it was the last
                    continue
                sequences.append(seq)
                num_new.append(1)
                if lookahead and not seq.request.params.beam_width and not seq.forks_due:
                    spare -= self._look_ahead(seq, step, spare)
        return prefilling, stalled

    def grow(self, seq: Sequence, step: Step) -> bool:
        """Slots for the next token and the rest of its block, at the cost of those who come last."""
        size = self.allocator.block_size
        target = min(-(-seq.num_tokens // size) * size, seq.final_tokens)
        while (copies := self.allocator.append(seq.id, target - seq.num_slots)) is None:
            if self.config.preemption == "wait":
                return False
            victim = self._victim()
            self._preempt(victim, step)
            if victim is seq:
                return False
        seq.num_slots = target
        step.move("copy", copies)
        return True

    def _look_ahead(self, seq: Sequence, step: Step, spare: int) -> int:
        """Slots for draft tokens too, where there are any: nobody is preempted for a guess. Returns how many."""
        want = min(self.config.lookahead, seq.final_tokens - seq.num_tokens, spare)
        lacking = seq.num_tokens + want - seq.num_slots
        if lacking > 0:
            copies = self.allocator.append(seq.id, lacking)
            if copies is None:
                want -= lacking
            else:
                seq.num_slots += lacking
                step.move("copy", copies)
        if want > 0:
            step.draft_room[seq.id] = want
        return max(want, 0)

    def _victim(self) -> Sequence:
        """Who gives way when memory is out."""
        return self.running[-1]

    def _preempt(self, seq: Sequence, step: Step) -> None:
        """Take a running sequence's blocks; it waits until there is room again."""
        self.stats.preemptions += 1
        if self.swap is not None and seq.num_computed > 0:
            copies = self.swap.swap_out(seq.id, seq.num_computed)
            if copies is not None:
                step.move("out", copies)
                self.stats.swapped_out_blocks += len(copies)
                seq.is_swapped = True
                self._leave(seq)
                self._enqueue(seq)
                return
        seq.num_lost = max(seq.num_lost, seq.num_computed)
        self._release(seq)
        self._enqueue(seq)

    def _schedule_prefills(self, step: Step, prefilling: list[Sequence], budget: int) -> int:
        """Go on with prompts that were begun. Returns what is left of the budget."""
        for seq in prefilling:
            if budget > 0:
                step.add(seq, min(seq.num_tokens - seq.num_computed, budget))
                budget -= step.num_new[-1]
        return budget

    def _admit(self, step: Step, budget: int) -> None:
        """Let waiting sequences in, in order, until one does not fit."""
        static = self.config.batching == "static"
        if static and self.running:
            return
        while budget > 0 or static:
            # A beam that has made its offer wants nothing until the other beams have made theirs.
            seq = next((seq for seq in self.waiting if seq.offer is None), None)
            if seq is None:
                return
            if self._width + seq.width > self.config.max_num_seqs and self.running:
                return
            if not self.config.chunked_prefill and seq.num_tokens > budget:
                return
            if not self._give_blocks(seq, step):
                return
            self.waiting.remove(seq)
            seq.status, seq.num_slots = Status.RUNNING, seq.num_tokens
            bisect.insort(self.running, seq, key=in_order)
            self._width += seq.width
            num_new = min(seq.num_tokens - seq.num_computed, budget)
            if num_new > 0:
                step.add(seq, num_new)
                budget -= num_new

    def _give_blocks(self, seq: Sequence, step: Step) -> bool:
        """Slots for all tokens of a waiting sequence, and what it has computed already. False: not now."""
        keys: list[bytes] = []
        looks = self._caches_prefixes and seq.request.may_read_cache
        if looks:
            self._extend_keys(seq, seq.num_tokens)
            keys = seq.keys
        if seq.is_swapped and self.swap is not None:
            back = self.swap.swap_in(seq.id, seq.num_tokens, seq.final_tokens, keys)
            if back is None:
                return False
            cached, copies = back
            step.move("in", copies)
            self.stats.swapped_in_blocks += len(copies)
            seq.is_swapped, seq.num_computed = False, max(seq.num_computed, cached)
            seq.num_drafted = max(seq.num_drafted, cached)
        else:
            found = self.allocator.allocate(seq.id, seq.num_tokens, seq.final_tokens, keys)
            if found is None:
                return False
            seq.num_computed = seq.num_drafted = cached = found
            self._count_admission(seq, cached, step, looked=looks)
        seq.num_published = cached // self.allocator.block_size
        return True

    def _count_admission(self, seq: Sequence, cached: int, step: Step, *, looked: bool) -> None:
        if seq.num_lost:
            self.stats.recomputed_tokens += max(seq.num_lost - cached, 0)
            seq.num_lost = 0
        elif seq.index == 0 and not seq.request.is_admitted:
            seq.request.is_admitted, seq.request.num_cached_tokens = True, cached
            step.admitted.append(seq.request)
            self.stats.prefix_queries += seq.num_tokens if looked else 0
            self.stats.prefix_hits += cached

    def _extend_keys(self, seq: Sequence, num_tokens: int) -> None:
        """Make seq.keys cover the full blocks of its first `num_tokens` tokens."""
        if len(seq.keys) < num_tokens // self.allocator.block_size:
            root = root_key(seq.request.cache_salt or "")
            extend_keys(seq.keys, root, seq.tokens, num_tokens, self.allocator.block_size, seq.request.images)

    def complete(self, step: Step) -> None:
        """Book what a step has written. Blocks that it filled may be found from now on; the window moves on."""
        size = self.allocator.block_size
        for seq, num_new in zip(step.sequences, step.num_new, strict=True):
            seq.num_computed += num_new
            if self._caches_prefixes and (seq.num_published + 1) * size <= seq.num_computed:
                full = seq.num_computed // size
                self._extend_keys(seq, full * size)
                self.allocator.publish(seq.id, seq.keys[:full])
                seq.num_published = full
            if self.window is not None:
                self.allocator.slide(seq.id, seq.num_computed - self.window + 1)

    def roll_back(self, seq: Sequence) -> None:
        """Give back the blocks that were taken for draft tokens and are not needed for the next one."""
        seq.num_drafted = min(seq.num_drafted, seq.num_computed)
        size = self.allocator.block_size
        needed = min(-(-seq.num_tokens // size) * size, seq.final_tokens)
        if seq.num_slots > needed:
            self.allocator.truncate(seq.id, needed)
            seq.num_slots = needed
