"""The baseline: each sequence reserves the maximum length as one contiguous run of blocks, first fit.

This is how engines kept their KV cache before paging. Blocks are only the unit of bookkeeping here, so that both
allocators serve the same model and the same pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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


class ContiguousAllocator:
    """Reserves `max_model_len` slots for each sequence. Nothing is shared: fork takes a new run and copies."""

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int) -> None:
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, block_size, max_model_len
        self._seqs: dict[int, SequenceBlocks] = {}

    @property
    def num_free_blocks(self) -> int:
        """See Allocator."""
        return self.num_blocks - sum(len(held.blocks) for held in self._seqs.values())

    def _run_blocks(self) -> int:
        """Blocks of one reservation."""
        return blocks_for(self.max_model_len, self.block_size)

    def _free_runs(self) -> Iterator[tuple[int, int]]:
        """(first block, length) of each maximal free run, lowest first."""
        end = 0
        for held in sorted(self._seqs.values(), key=lambda held: held.blocks[0]):
            if held.blocks[0] > end:
                yield end, held.blocks[0] - end
            end = held.blocks[-1] + 1
        if end < self.num_blocks:
            yield end, self.num_blocks - end

    def _reserve(self) -> list[int] | None:
        """First fit: a run of its own, or None."""
        need = self._run_blocks()
        start = next((start for start, length in self._free_runs() if length >= need), None)
        return None if start is None else list(range(start, start + need))

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """See Allocator."""
        return final_tokens <= self.max_model_len and n * self._run_blocks() <= self.num_blocks

    def allocate(self, seq_id: int, num_tokens: int, final_tokens: int) -> bool:
        """See Allocator."""
        check_new(self._seqs, seq_id, num_tokens, final_tokens)
        if final_tokens > self.max_model_len:
            raise ValueError(f"sequence {seq_id} announces {final_tokens} tokens, a run holds {self.max_model_len}")
        blocks = self._reserve()
        if blocks is None:
            return False
        self._seqs[seq_id] = SequenceBlocks(blocks, num_tokens, final_tokens)
        return True

    def append(self, seq_id: int, num_tokens: int = 1) -> list[BlockCopy] | None:
        """See Allocator. Never refused: the run was reserved at the start."""
        held = self._seqs[seq_id]
        check_growth(held, seq_id, num_tokens)
        held.num_tokens += num_tokens
        return []

    def fork(self, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        """See Allocator."""
        parent = self._seqs[parent_id]
        check_new(self._seqs, child_id, parent.num_tokens, parent.final_tokens)
        blocks = self._reserve()
        if blocks is None:
            return None
        self._seqs[child_id] = SequenceBlocks(blocks, parent.num_tokens, parent.final_tokens)
        live = blocks_for(parent.num_tokens, self.block_size)
        return [BlockCopy(a, b) for a, b in zip(parent.blocks[:live], blocks[:live], strict=True)]

    def free(self, seq_id: int) -> None:
        """See Allocator."""
        del self._seqs[seq_id]

    def block_table(self, seq_id: int) -> Sequence[int]:
        """See Allocator."""
        return self._seqs[seq_id].blocks

    def split(self, written: Mapping[int, int]) -> KVSplit:
        """See Allocator."""
        states = sum(written[seq_id] for seq_id in self._seqs)
        final = sum(held.final_tokens for held in self._seqs.values())
        owned = (self.num_blocks - self.num_free_blocks) * self.block_size
        external = sum(length % self._run_blocks() for _, length in self._free_runs()) * self.block_size
        return KVSplit(states, final - states, owned - final, external, self.num_free_blocks * self.block_size)

    def check_integrity(self) -> None:
        """See Allocator."""
        owned: list[int] = []
        for seq_id, held in self._seqs.items():
            check_cover(held, seq_id, self.block_size)
            first = held.blocks[0]
            if held.blocks != list(range(first, first + self._run_blocks())):
                raise IntegrityError(f"sequence {seq_id} holds {held.blocks}, no run of {self._run_blocks()} blocks")
            owned += held.blocks
        free = sum(length for _, length in self._free_runs())
        if free + len(owned) != self.num_blocks or len(set(owned)) != len(owned):
            raise IntegrityError(f"{free} free + {len(owned)} owned ({len(owned) - len(set(owned))} of them twice) "
                                 f"!= {self.num_blocks} blocks; {len(self._seqs)} sequences")

    def check_writable(self, seq_id: int, start: int, stop: int) -> None:
        """See Allocator. Runs are never shared."""
        if stop > self._seqs[seq_id].num_tokens:
            raise IntegrityError(f"sequence {seq_id} is about to write positions [{start}, {stop}) of its "
                                 f"{self._seqs[seq_id].num_tokens}")
