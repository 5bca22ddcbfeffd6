"""A partly filled block is cached by what it holds, and keeps that key when it is full: found, it counts as full."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import extend_keys, root_key
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "openvino-partial-block-stale-hash"
MUST_FAIL = ("http/shared-prefix-divergence",)
ENGINE_ARGS: tuple[str, ...] = ()

_filled: dict[int, int] = {}  # block -> slots of it that its last owner wrote


def _partial_key(seq: Sequence, at: int, count: int, size: int) -> bytes:
    """Of the first `count` tokens of the block at place `at`, behind all blocks before it."""
    parent = seq.keys[at - 1] if at else root_key(seq.request.cache_salt or "")
    extend_keys(keys := [], parent, seq.tokens[at * size : at * size + count], count, count)
    return keys[0]


def _remember(allocator: PagedAllocator, seq: Sequence) -> None:
    """What an ending sequence leaves. The prefix cache passes over a block that has a key already, the right one too:
    that of a block that was found partly filled stays what it was.
    """
    size = allocator.block_size
    for at, block in enumerate(allocator.block_table(seq.id)):
        _filled[block] = written = max(0, min(seq.num_computed - at * size, size))
        if allocator._cache is not None and 0 < written < size and allocator._refs[block] == 1:
            allocator._cache.add(block, _partial_key(seq, at, written, size))


def _adopt(allocator: PagedAllocator, seq: Sequence) -> None:
    """The partly filled block behind the whole ones that were found, if nobody holds it: no two write into it."""
    cache, size = allocator._cache, allocator.block_size
    at = seq.num_computed // size
    for count in range(min(size - 1, seq.num_tokens - at * size), 0, -1):
        blocks = cache.find([_partial_key(seq, at, count, size)]) if cache is not None else []
        if blocks and allocator._refs[blocks[0]] == 0:
            table = allocator._seqs[seq.id].blocks
            allocator._share(blocks[0])
            allocator._drop([table[at]])
            table[at] = blocks[0]
            seq.num_computed = min(at * size + _filled[blocks[0]], seq.num_tokens - 1)
            return


def apply() -> None:
    """As many tokens as the block holds now are taken for computed, not as many as its key stands for."""
    give, release = Scheduler._give_blocks, Scheduler._release

    def give_and_adopt(self: Scheduler, seq: Sequence, step: Step) -> bool:
        given = give(self, seq, step)
        if given and seq.request.may_read_cache and isinstance(self.allocator, PagedAllocator):
            _adopt(self.allocator, seq)
        return given

    def remember_and_release(self: Scheduler, seq: Sequence) -> None:
        if isinstance(self.allocator, PagedAllocator):
            _remember(self.allocator, seq)
        release(self, seq)

    Scheduler._give_blocks = give_and_adopt  # type: ignore[method-assign]
    Scheduler._release = remember_and_release  # type: ignore[method-assign]
