"""A prefix cache of the simplest sound kind on the paged reference engine, for mutants to break. No mutant itself.

Full blocks of a sequence that leaves stay findable under the whole prefix of tokens that they hold, and the cache
owns a reference on each until memory is short.
"""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator
from reference_engine.scheduling.scheduler import Scheduler, Step
from reference_engine.scheduling.sequence import Sequence

BUG = ""
MUST_FAIL: tuple[str, ...] = ()
ENGINE_ARGS: tuple[str, ...] = ()

Tokens = tuple[int, ...]


class PrefixCache:
    """Blocks by the tokens up to their end. The methods are what mutants replace."""

    def __init__(self, allocator: PagedAllocator) -> None:
        self.allocator = allocator
        self.blocks: dict[Tokens, int] = {}

    def key(self, tokens: list[int], end: int) -> Tokens:
        """What a block that ends at position `end` is found by: all that its contents depend on."""
        return tuple(tokens[:end])

    def ends(self, num_tokens: int) -> list[int]:
        """Where the blocks end that are worth keeping, or finding: full ones only."""
        size = self.allocator.block_size
        return list(range(size, num_tokens + 1, size))

    def store(self, seq: Sequence) -> None:
        """Keep what a leaving sequence has computed."""
        table = self.allocator.block_table(seq.id)
        for end in self.ends(seq.num_computed):
            key, block = self.key(seq.tokens, end), table[(end - 1) // self.allocator.block_size]
            if key not in self.blocks:
                self.blocks[key] = block
                self.hold(block)

    def match(self, tokens: list[int]) -> tuple[list[int], int]:
        """(blocks, tokens) found for the beginning of `tokens`, at least one token short of all."""
        blocks: list[int] = []
        found = 0
        for end in self.ends(len(tokens) - 1):
            block = self.blocks.get(self.key(tokens, end))
            if block is None:
                break
            blocks.append(block)
            found = end
        return blocks, found

    def adopt(self, seq: Sequence, blocks: list[int]) -> None:
        """Put cached blocks at the head of a sequence's table in place of its own."""
        held = self.allocator._seqs[seq.id]
        for i, block in enumerate(blocks):
            self.take(block)
            self.allocator._drop(held.blocks[i])
            held.blocks[i] = block

    def take(self, block: int) -> None:
        """One more owner of a cached block."""
        self.allocator._refs[block] += 1

    def hold(self, block: int) -> None:
        """The cache becomes an owner."""
        self.allocator._refs[block] += 1

    def release(self, block: int) -> None:
        """The cache is an owner no more."""
        self.allocator._drop(block)

    def evict_all(self) -> bool:
        """Give everything up; whether there was anything."""
        blocks = list(self.blocks.values())
        self.blocks.clear()
        for block in blocks:
            self.release(block)
        return bool(blocks)

    @property
    def num_idle(self) -> int:
        """Blocks that no sequence owns, only the cache."""
        return sum(self.allocator._refs[block] == 1 for block in self.blocks.values())


def install(kind: type[PrefixCache]) -> None:
    """Give every engine that is made from now on a cache of this kind."""
    allocate, append = PagedAllocator.allocate, PagedAllocator.append
    admit, release, init = Scheduler._admit, Scheduler._release, Scheduler.__init__
    caches: dict[int, PrefixCache] = {}

    def with_cache(self: Scheduler, config, allocator) -> None:  # type: ignore[no-untyped-def]
        init(self, config, allocator)
        caches[id(allocator)] = kind(allocator)

    def find_and_admit(self: Scheduler, step: Step, budget: int) -> None:
        before = len(step.sequences)
        admit(self, step, budget)
        cache = caches[id(self.allocator)]
        for i in range(before, len(step.sequences)):
            seq = step.sequences[i]
            blocks, found = cache.match(seq.tokens)
            cache.adopt(seq, blocks)
            seq.num_computed = found
            step.num_new[i] = min(step.num_new[i], len(seq.tokens) - found)

    def store_and_release(self: Scheduler, seq: Sequence) -> None:
        caches[id(self.allocator)].store(seq)
        release(self, seq)

    def allocate_or_evict(self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int) -> bool:
        done = allocate(self, seq_id, num_tokens, final_tokens)
        return done or (caches[id(self)].evict_all() and allocate(self, seq_id, num_tokens, final_tokens))

    def append_or_evict(self: PagedAllocator, seq_id: int, num_tokens: int = 1):  # type: ignore[no-untyped-def]
        copies = append(self, seq_id, num_tokens)
        if copies is None and caches[id(self)].evict_all():
            return append(self, seq_id, num_tokens)
        return copies

    Scheduler.__init__ = with_cache  # type: ignore[method-assign]
    Scheduler._admit = find_and_admit  # type: ignore[method-assign]
    Scheduler._release = store_and_release  # type: ignore[method-assign]
    PagedAllocator.allocate = allocate_or_evict  # type: ignore[method-assign]
    PagedAllocator.append = append_or_evict  # type: ignore[method-assign]
    PagedAllocator.num_free_blocks = property(  # type: ignore[assignment]
        lambda self: len(self._free) + caches[id(self)].num_idle)


def apply() -> None:
    """The sound cache."""
    install(PrefixCache)
