"""The paged allocator: blocks on demand, shared by reference count, copied on write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reference_engine.memory.allocator import (
    IntegrityError,
    KVSplit,
    SequenceBlocks,
    blocks_for,
    check_cover,
    check_growth,
    check_new,
)
from reference_engine.memory.pool import BlockCopy


class PagedAllocator:
    """Blocks on demand from one free list, with reference counts. Fork shares all blocks; the first write into a
    shared partial block copies it.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the block freed last is warm
        self._refs = [0] * num_blocks
        self._seqs: dict[int, SequenceBlocks] = {}

    @property
    def num_free_blocks(self) -> int:
        """See Allocator."""
        return len(self._free)

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """See Allocator. Full blocks of the prompt are shared, each sequence ends with its own copy of the rest."""
        shared = prompt_tokens // self.block_size
        return shared + n * (blocks_for(final_tokens, self.block_size) - shared) <= self.num_blocks

    def allocate(self, seq_id: int, num_tokens: int, final_tokens: int) -> bool:
        """See Allocator."""
        check_new(self._seqs, seq_id, num_tokens, final_tokens)
        need = blocks_for(num_tokens, self.block_size)
        if need > len(self._free):
            return False
        self._seqs[seq_id] = SequenceBlocks([self._take() for _ in range(need)], num_tokens, final_tokens)
        return True

    def append(self, seq_id: int, num_tokens: int = 1) -> list[BlockCopy] | None:
        """See Allocator."""
        held = self._seqs[seq_id]
        check_growth(held, seq_id, num_tokens)
        copy_last = self._must_copy_last(held)
        grow = blocks_for(held.num_tokens + num_tokens, self.block_size) - len(held.blocks)
        if grow + copy_last > len(self._free):
            return None
        copies = []
        if copy_last:
            source, target = held.blocks[-1], self._take()
            held.blocks[-1] = target
            self._drop(source)
            copies.append(BlockCopy(source, target))
        for _ in range(grow):
            held.blocks.append(self._take())
        held.num_tokens += num_tokens
        return copies

    def _must_copy_last(self, held: SequenceBlocks) -> bool:
        """Copy on write: whether the next token goes into a block that another sequence holds too."""
        return held.num_tokens % self.block_size != 0 and self._refs[held.blocks[-1]] > 1

    def fork(self, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        """See Allocator. Never refused, and copies nothing yet."""
        parent = self._seqs[parent_id]
        check_new(self._seqs, child_id, parent.num_tokens, parent.final_tokens)
        for block in parent.blocks:
            self._refs[block] += 1
        self._seqs[child_id] = SequenceBlocks(list(parent.blocks), parent.num_tokens, parent.final_tokens)
        return []

    def free(self, seq_id: int) -> None:
        """See Allocator."""
        for block in reversed(self._seqs.pop(seq_id).blocks):
            self._drop(block)

    def block_table(self, seq_id: int) -> Sequence[int]:
        """See Allocator."""
        return self._seqs[seq_id].blocks

    def _take(self) -> int:
        block = self._free.pop()
        self._refs[block] = 1
        return block

    def _drop(self, block: int) -> None:
        self._refs[block] -= 1
        if self._refs[block] == 0:
            self._free.append(block)

    def split(self, written: Mapping[int, int]) -> KVSplit:
        """See Allocator."""
        filled: dict[int, int] = {}  # block -> slots written in it
        usable: dict[int, int] = {}  # block -> slots written in it in the end
        for seq_id, held in self._seqs.items():
            for i, block in enumerate(held.blocks):
                start = i * self.block_size
                filled[block] = max(filled.get(block, 0), min(written[seq_id] - start, self.block_size))
                usable[block] = max(usable.get(block, 0), min(held.final_tokens - start, self.block_size))
        states, final = sum(filled.values()), sum(usable.values())
        owned = len(filled) * self.block_size
        return KVSplit(states, final - states, owned - final, 0, len(self._free) * self.block_size)

    def check_integrity(self) -> None:
        """See Allocator."""
        holders = [0] * self.num_blocks
        for seq_id, held in self._seqs.items():
            check_cover(held, seq_id, self.block_size)
            for block in held.blocks:
                holders[block] += 1
        owned = sum(1 for count in holders if count)
        duplicates = len(self._free) - len(set(self._free))
        both = [block for block in self._free if holders[block]]
        if len(self._free) + owned != self.num_blocks or duplicates or both:
            raise IntegrityError(f"{len(self._free)} free ({duplicates} listed twice, also owned: {both}) + {owned} "
                                 f"owned != {self.num_blocks} blocks; {len(self._seqs)} sequences")
        wrong = [(b, self._refs[b], holders[b]) for b in range(self.num_blocks) if self._refs[b] != holders[b]]
        if wrong:
            raise IntegrityError(f"(block, references, holders) do not agree: {wrong[:8]}")

    def check_writable(self, seq_id: int, start: int, stop: int) -> None:
        """See Allocator."""
        held = self._seqs[seq_id]
        blocks = held.blocks[start // self.block_size : blocks_for(stop, self.block_size)]
        shared = [(block, self._refs[block]) for block in blocks if self._refs[block] != 1]
        if shared or stop > held.num_tokens:
            raise IntegrityError(f"sequence {seq_id} is about to write positions [{start}, {stop}) of its "
                                 f"{held.num_tokens}; shared (block, references): {shared}")
