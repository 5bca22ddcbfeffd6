"""A prefix cache that also hands out the partly filled last block, to several who then write behind its end."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "atlas-partial-tail-two-writers"
MUST_FAIL = ("http/shared-prefix-divergence",)
ENGINE_ARGS: tuple[str, ...] = ()

_tails: dict[tuple[int, ...], int] = {}  # tokens -> the block that their last, partial one is in; kept for ever


def _remember(allocator: PagedAllocator, seq: Sequence) -> None:
    key = tuple(seq.tokens[: seq.num_computed])
    if seq.num_computed % allocator.block_size and key not in _tails:
        _tails[key] = allocator.block_table(seq.id)[-1]
        allocator._refs[_tails[key]] += 1


def _adopt(allocator: PagedAllocator, seq: Sequence) -> None:
    """The longest tail behind the whole blocks that were found, in place of a block of one's own."""
    for end in range(min(seq.num_tokens - 1, seq.num_computed + allocator.block_size - 1), seq.num_computed, -1):
        tail = _tails.get(tuple(seq.tokens[:end]))
        if tail is not None:
            table = allocator._seqs[seq.id].blocks
            at = end // allocator.block_size
            allocator._drop([table[at]])
            allocator._refs[tail] += 1
            table[at], seq.num_computed = tail, end
            return


def apply() -> None:
    """Without a copy before the first write."""
    give, release = Scheduler._give_blocks, Scheduler._release

    def give_and_adopt(self: Scheduler, seq: Sequence, step: Step) -> bool:
        given = give(self, seq, step)
        if given and isinstance(self.allocator, PagedAllocator):
            _adopt(self.allocator, seq)
        return given

    def remember_and_release(self: Scheduler, seq: Sequence) -> None:
        if isinstance(self.allocator, PagedAllocator):
            _remember(self.allocator, seq)
        release(self, seq)

    Scheduler._give_blocks = give_and_adopt  # type: ignore[method-assign]
    Scheduler._release = remember_and_release  # type: ignore[method-assign]
