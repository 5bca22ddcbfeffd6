"""The paged allocator: blocks on demand, shared by reference count, copied on write, cached by prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from reference_engine.memory.allocator import (
    HOLE,
    BlockCopy,
    IntegrityError,
    KVSplit,
    SequenceBlocks,
    blocks_for,
    check_cover,
    check_growth,
    check_new,
    check_truncation,
)
from reference_engine.memory.prefix_cache import PrefixCache


class PagedAllocator:
    """Fork shares all blocks; the first write into a shared partial block copies it.

    A block is in one of three places: owned (by as many sequences as it has references), idle in the prefix cache, or
    free. Idle blocks count as free: they are evicted when the free ones are used up.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = False) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the block freed last is warm
        self._refs = [0] * num_blocks
        self._seqs: dict[int, SequenceBlocks] = {}
        self._cache = PrefixCache() if prefix_caching else None

    @property
    def num_free_blocks(self) -> int:
        """See Allocator."""
        return len(self._free) + (self._cache.num_idle if self._cache else 0)

    @property
    def idle_blocks(self) -> Set[int]:
        """See Allocator."""
        return self._cache.idle if self._cache is not None else frozenset()

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """See Allocator. Full blocks of the prompt are shared, each sequence ends with its own copy of the rest."""
        shared = prompt_tokens // self.block_size
        return shared + n * (blocks_for(final_tokens, self.block_size) - shared) <= self.num_blocks

    def allocate(self, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()) -> int | None:
        """See Allocator. Never finds the last token: at least that one must be computed, to know what follows it."""
        check_new(self._seqs, seq_id, num_tokens, final_tokens)
        hits, idle, missing = self._need_of_new(num_tokens, keys)
        if missing > self.num_free_blocks - idle:
            return None
        for block in hits:  # before anything is taken: taking may evict
            self._share(block)
        blocks = hits + self._take(missing)
        self._seqs[seq_id] = SequenceBlocks(blocks, num_tokens, final_tokens, num_published=len(hits))
        return len(hits) * self.block_size

    def _need_of_new(self, num_tokens: int, keys: Sequence[bytes]) -> tuple[list[int], int, int]:
        """Of a new sequence: blocks that are found, how many of them are idle, how many others it needs."""
        hits: list[int] = []
        idle = 0
        if self._cache is not None:
            hits = self._cache.find(keys[: (num_tokens - 1) // self.block_size])
            idle = sum(map(self._cache.is_idle, hits))
        return hits, idle, blocks_for(num_tokens, self.block_size) - len(hits)

    def cost_of_new(self, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()) -> int | None:
        """See Allocator."""
        _, idle, missing = self._need_of_new(num_tokens, keys)
        return idle + missing if idle + missing <= self.num_free_blocks else None

    def append(self, seq_id: int, num_tokens: int = 1) -> list[BlockCopy] | None:
        """See Allocator."""
        held = self._seqs[seq_id]
        check_growth(held, seq_id, num_tokens)
        grow, copy_last = self._need_of_growth(held, num_tokens)
        if grow + copy_last > self.num_free_blocks:
            return None
        copies = []
        if copy_last:
            source, (target,) = held.blocks[-1], self._take(1)
            held.blocks[-1] = target
            self._drop([source])
            copies.append(BlockCopy(source, target))
        held.blocks += self._take(grow)
        held.num_tokens += num_tokens
        return copies

    def _need_of_growth(self, held: SequenceBlocks, num_tokens: int) -> tuple[int, bool]:
        """New blocks, and whether the last one has to be copied into one more."""
        return blocks_for(held.num_tokens + num_tokens, self.block_size) - len(held.blocks), self._must_copy_last(held)

    def cost_of_growth(self, seq_id: int, num_tokens: int = 1) -> int | None:
        """See Allocator."""
        cost = sum(self._need_of_growth(self._seqs[seq_id], num_tokens))
        return cost if cost <= self.num_free_blocks else None

    def _must_copy_last(self, held: SequenceBlocks) -> bool:
        """Copy on write: whether the next token goes into a block that another sequence holds too."""
        return held.num_tokens % self.block_size != 0 and self._refs[held.blocks[-1]] > 1

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        """See Allocator."""
        held = self._seqs[seq_id]
        check_truncation(held, seq_id, num_tokens)
        held.num_tokens = num_tokens
        kept = blocks_for(num_tokens, self.block_size)
        self._drop(reversed(held.blocks[kept:]))
        del held.blocks[kept:]

    def publish(self, seq_id: int, keys: Sequence[bytes]) -> None:
        """See Allocator."""
        if self._cache is None:
            return
        held = self._seqs[seq_id]
        for at in range(held.num_published, len(keys)):
            if held.blocks[at] != HOLE:
                self._cache.add(held.blocks[at], keys[at])
        held.num_published = max(held.num_published, len(keys))

    def slide(self, seq_id: int, position: int) -> None:
        """See Allocator."""
        held = self._seqs[seq_id]
        for at in range(held.num_holes, min(position, held.num_tokens) // self.block_size):
            self._drop([held.blocks[at]])
            held.blocks[at] = HOLE
            held.num_holes = at + 1

    def fork(self, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        """See Allocator. Never refused, and copies nothing yet."""
        parent = self._seqs[parent_id]
        check_new(self._seqs, child_id, parent.num_tokens, parent.final_tokens)
        for block in parent.blocks[parent.num_holes :]:
            self._refs[block] += 1
        self._seqs[child_id] = SequenceBlocks(
            list(parent.blocks), parent.num_tokens, parent.final_tokens, parent.num_holes, parent.num_published
        )
        return []

    def free(self, seq_id: int) -> None:
        """See Allocator. The last block goes first, so that of an idle prefix the end is evicted before the start."""
        held = self._seqs.pop(seq_id)
        self._drop(reversed(held.blocks[held.num_holes :]))

    def block_table(self, seq_id: int) -> Sequence[int]:
        """See Allocator."""
        return self._seqs[seq_id].blocks

    def reset_prefix_cache(self) -> None:
        """See Allocator."""
        if self._cache is not None:
            self._free += self._cache.clear()

    def _take(self, count: int) -> list[int]:
        """Blocks of one's own, where so many are known to be there. The one freed last comes first."""
        free, refs = self._free, self._refs
        if self._cache is not None:
            while len(free) < count:
                free.insert(0, self._cache.evict())
        if count == 1:  # what nearly every append asks for
            block = free.pop()
            refs[block] = 1
            return [block]
        taken = free[: -count - 1 : -1]
        del free[len(free) - count :]
        for block in taken:
            refs[block] = 1
        return taken

    def _share(self, block: int) -> None:
        """One more owner of a block that the prefix cache knows."""
        if self._refs[block] == 0 and self._cache is not None:
            self._cache.claim(block)
        self._refs[block] += 1

    def _drop(self, blocks: Iterable[int]) -> None:
        """One owner less of each."""
        free, refs, cache = self._free, self._refs, self._cache
        for block in blocks:
            left = refs[block] = refs[block] - 1
            if left == 0 and (cache is None or not cache.keep(block)):
                free.append(block)

    def split(self, written: Mapping[int, int]) -> KVSplit:
        """See Allocator."""
        size = self.block_size
        filled: dict[int, int] = {}  # block -> slots written in it
        usable: dict[int, int] = {}  # block -> slots written in it in the end
        for seq_id, held in self._seqs.items():
            for at in range(held.num_holes, len(held.blocks)):
                block, start = held.blocks[at], at * size
                filled[block] = max(filled.get(block, 0), min(written[seq_id] - start, size))
                usable[block] = max(usable.get(block, 0), min(held.final_tokens - start, size))
        states, final = sum(filled.values()), sum(usable.values())
        owned = len(filled) * size
        return KVSplit(states, final - states, owned - final, 0, self.num_free_blocks * size)

    def check_integrity(self) -> None:
        """See Allocator."""
        holders = [0] * self.num_blocks
        for seq_id, held in self._seqs.items():
            check_cover(held, seq_id, self.block_size)
            for block in held.blocks[held.num_holes :]:
                holders[block] += 1
        owned = sum(1 for count in holders if count)
        idle = self._cache.num_idle if self._cache else 0
        duplicates = len(self._free) - len(set(self._free))
        both = [block for block in self._free if holders[block]]
        if len(self._free) + idle + owned != self.num_blocks or duplicates or both:
            raise IntegrityError(f"{len(self._free)} free ({duplicates} listed twice, also owned: {both}) + {idle} "
                                 f"idle + {owned} owned != {self.num_blocks} blocks; {len(self._seqs)} sequences")
        wrong = [(b, self._refs[b], holders[b]) for b in range(self.num_blocks) if self._refs[b] != holders[b]]
        if wrong:
            raise IntegrityError(f"(block, references, holders) do not agree: {wrong[:8]}")
        if self._cache is not None:
            self._cache.check_integrity(holders)

    def check_writable(self, seq_id: int, start: int, stop: int) -> None:
        """See Allocator."""
        held = self._seqs[seq_id]
        blocks = held.blocks[start // self.block_size : blocks_for(stop, self.block_size)]
        shared = [(block, 0 if block == HOLE else self._refs[block]) for block in blocks]
        shared = [(block, references) for block, references in shared if references != 1]
        if shared or stop > held.num_tokens:
            raise IntegrityError(f"sequence {seq_id} is about to write positions [{start}, {stop}) of its "
                                 f"{held.num_tokens}; not its own (block, references): {shared}")
