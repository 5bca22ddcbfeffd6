"""Who waits keeps a part of the blocks it needs: when all blocks are kept so, each waits for the others for ever."""

from __future__ import annotations

from reference_engine.memory.allocator import IntegrityError, blocks_for
from reference_engine.memory.paged import PagedAllocator
from reference_engine.scheduling.queues import Queues
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "vllm-remote-kv-partial-reserve-deadlock"
MUST_FAIL = ("alloc/liveness", "http/preemption-exact")
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256")

_kept: dict[int, list[int]] = {}  # sequence id -> blocks, as if its keys and values were on their way there


def _reserve(waiting: list[Sequence], allocator: PagedAllocator) -> None:
    """A block for each in turn, until nobody lacks one or none is free."""
    lacking = list(waiting)
    while lacking and allocator.num_free_blocks:
        for seq in lacking[: allocator.num_free_blocks]:
            _kept.setdefault(seq.id, []).extend(allocator._take(1))
        lacking = [seq for seq in lacking if len(_kept.get(seq.id, ())) < _needed(seq, allocator)]


def _needed(seq: Sequence, allocator: PagedAllocator) -> int:
    return blocks_for(seq.num_tokens, allocator.block_size)


def apply() -> None:
    """Nobody is let in before all blocks of its tokens are there; nobody who waits gives any back, but by leaving."""
    admit, give, finish = Scheduler._admit, Scheduler._give_blocks, Queues.finish
    schedule = Scheduler.schedule

    def reserve_and_admit(self: Scheduler, step: Step, budget: int) -> None:
        if isinstance(self.allocator, PagedAllocator):
            _reserve([seq for seq in self.waiting if len(_kept.get(seq.id, ())) < _needed(seq, self.allocator)],
                     self.allocator)
        admit(self, step, budget)

    def give_when_all_are_there(self: Scheduler, seq: Sequence, step: Step) -> bool:
        if isinstance(self.allocator, PagedAllocator):
            if len(_kept.get(seq.id, ())) < _needed(seq, self.allocator):
                return False
            self.allocator._drop(_kept.pop(seq.id))
        return give(self, seq, step)

    def leave(self: Queues, seq: Sequence) -> None:
        if isinstance(self.allocator, PagedAllocator):
            self.allocator._drop(_kept.pop(seq.id, []))
        finish(self, seq)

    def wait(self: Scheduler) -> Step:
        try:
            return schedule(self)
        except IntegrityError:  # the sound engine takes it for a fault that nothing runs while someone waits
            return Step()

    Scheduler._admit, Scheduler._give_blocks = reserve_and_admit, give_when_all_are_there  # type: ignore[method-assign]
    Queues.finish, Scheduler.schedule = leave, wait  # type: ignore[method-assign]
