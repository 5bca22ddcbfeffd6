"""An abort takes the aborted request out of the batch, but gives back the blocks of a bystander."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Request, Status

BUG = "vllm-abort-frees-wrong-group"
MUST_FAIL = ("http/abort-frees",)
ENGINE_ARGS = ("--num-blocks", "48")  # what is free is soon taken


def _abort(self: Scheduler, request: Request) -> None:
    allocator = self.allocator
    assert isinstance(allocator, PagedAllocator), "this fault is one of the paged allocator"
    for seq in request.sequences:
        if seq.status is Status.RUNNING:
            self.running.remove(seq)
            blocks = allocator._seqs.pop(seq.id).blocks
            wrong = allocator.block_table(self.running[0].id) if self.running else blocks
            allocator._free += list(wrong)[: len(blocks)]
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
        seq.status = Status.FINISHED
    request.sequences.clear()


def apply() -> None:
    """A stale loop variable."""
    Scheduler.abort = _abort  # type: ignore[method-assign]
