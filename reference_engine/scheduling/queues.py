"""Who runs and who waits, in one order, and what becomes of their blocks when they come, fork, leave and end."""

from __future__ import annotations

import bisect

from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import Allocator, BlockCopy, IntegrityError
from reference_engine.memory.swap import SwapSpace
from reference_engine.scheduling.sequence import Request, Sequence, Status


class Queues:
    """Waiting and running sequences, both by priority, arrival and choice."""

    def __init__(self, config: EngineConfig, allocator: Allocator) -> None:
        self.config, self.allocator = config, allocator
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.swap = SwapSpace(config.num_swap_blocks, allocator) if config.preemption == "swap" else None
        self._width = 0  # of the running sequences together

    def add(self, request: Request) -> None:
        """Queue the sequences of a request."""
        for seq in request.sequences:
            self._enqueue(seq)

    def _enqueue(self, seq: Sequence) -> None:
        seq.status = Status.WAITING
        bisect.insort(self.waiting, seq, key=in_order)

    def finish(self, seq: Sequence) -> None:
        """End a sequence, wherever it is, and free what it holds. Ending it twice does nothing."""
        if seq.status is Status.RUNNING:
            self._release(seq)
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
            if seq.is_swapped and self.swap is not None:
                self.swap.discard(seq.id)
        seq.status = Status.FINISHED

    def abort(self, request: Request) -> None:
        """End all unfinished sequences of a request."""
        for seq in request.sequences:
            self.finish(seq)
        request.sequences.clear()

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.waiting or self.running)

    def fork(self, parent: Sequence, child: Sequence) -> list[BlockCopy]:
        """Start `child` from what `parent` has computed; do the copies at once.

        Where memory or seats are out, or the parent itself waits, the child waits and computes all anew.
        """
        copies = None
        if parent.status is Status.RUNNING and self._width + child.width <= self.config.max_num_seqs:
            self.allocator.truncate(parent.id, parent.num_computed)  # what it may write now is no longer its alone
            parent.num_slots = parent.num_computed
            copies = self.allocator.fork(parent.id, child.id)
        if copies is None:
            self._enqueue(child)
            return []
        child.status = Status.RUNNING
        child.num_computed, child.num_slots = parent.num_computed, parent.num_slots
        child.num_drafted = parent.num_drafted
        child.keys, child.num_published = list(parent.keys), parent.num_published
        bisect.insort(self.running, child, key=in_order)
        self._width += child.width
        return copies

    def fork_due(self, parent: Sequence, child: Sequence) -> list[BlockCopy]:
        """Fork one of the children that `parent` has computed the prompt for, and that it stood for until now."""
        parent.forks_due -= 1
        self._width -= 1
        return self.fork(parent, child)

    def _leave(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._width -= seq.width
        seq.num_slots = seq.num_published = 0

    def _release(self, seq: Sequence) -> None:
        """Take a sequence from the running ones and free its blocks."""
        self._leave(seq)
        self.allocator.free(seq.id)
        seq.num_computed = seq.num_drafted = 0

    def written(self) -> dict[int, int]:
        """Sequence id -> tokens whose keys and values are written, of all that hold blocks."""
        return {seq.id: seq.num_computed for seq in self.running}

    def check_integrity(self) -> None:
        """Raise IntegrityError unless queues and allocator agree."""
        self.allocator.check_integrity()
        if self.swap is not None:
            self.swap.check_integrity()
        for seq in self.running:
            blocks = len(self.allocator.block_table(seq.id))
            if not seq.num_computed <= seq.num_slots <= blocks * self.allocator.block_size:
                raise IntegrityError(f"sequence {seq.id} has computed {seq.num_computed} tokens in {seq.num_slots} "
                                     f"slots of {blocks} blocks")
        for name, queue in (("waiting", self.waiting), ("running", self.running)):
            orders = [seq.order for seq in queue]
            if orders != sorted(orders):
                raise IntegrityError(f"the {name} sequences are out of order: {orders}")
        if self._width != sum(seq.width for seq in self.running):
            raise IntegrityError(f"the running sequences count {self._width}, they are {len(self.running)} of widths "
                                 f"{[seq.width for seq in self.running]}")


def in_order(seq: Sequence) -> tuple[int, int, int]:
    """What both queues are sorted by."""
    return seq.order
