"""Swapping: a preempted sequence's blocks move to host memory, and back when there is room."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.allocator import Allocator, BlockCopy, IntegrityError, blocks_for


class SwapSpace:
    """Which host block holds what. Like the allocator it moves no memory: it answers with the copies to do.

    Blocks that were shared are copied for each sequence: sharing is lost on the way, contents are not.
    """

    def __init__(self, num_blocks: int, allocator: Allocator) -> None:
        self.num_blocks, self._allocator = num_blocks, allocator
        self._free = list(range(num_blocks - 1, -1, -1))
        self._seqs: dict[int, list[int]] = {}

    def swap_out(self, seq_id: int, num_computed: int) -> list[BlockCopy] | None:
        """Free a sequence's device blocks; what it has computed is to be copied (device to host) first.

        None: not enough host blocks, nothing has changed.
        """
        table = self._allocator.block_table(seq_id)[: blocks_for(num_computed, self._allocator.block_size)]
        if len(table) > len(self._free) or any(block < 0 for block in table):  # a window's holes cannot be restored
            return None
        host = [self._free.pop() for _ in table]
        copies = [BlockCopy(a, b) for a, b in zip(table, host, strict=True)]
        self._seqs[seq_id] = host
        self._allocator.free(seq_id)
        return copies

    def swap_in(
        self, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> tuple[int, list[BlockCopy]] | None:
        """Give a swapped sequence device blocks for `num_tokens`; its contents are to be copied (host to device).

        Returns (tokens that the prefix cache still had, and which need no copy; the copies for the others). None: no
        memory now, nothing has changed.
        """
        cached = self._allocator.allocate(seq_id, num_tokens, final_tokens, keys)
        if cached is None:
            return None
        host, table = self._seqs.pop(seq_id), self._allocator.block_table(seq_id)
        have = cached // self._allocator.block_size
        self._free += host
        return cached, [BlockCopy(a, b) for a, b in zip(host[have:], table[have:], strict=False)]

    def discard(self, seq_id: int) -> None:
        """Forget a sequence that will not come back."""
        self._free += self._seqs.pop(seq_id)

    @property
    def num_used_blocks(self) -> int:
        """Host blocks that hold something."""
        return self.num_blocks - len(self._free)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the books add up."""
        used = [block for blocks in self._seqs.values() for block in blocks]
        if sorted(used + self._free) != list(range(self.num_blocks)):
            raise IntegrityError(f"{len(self._free)} free + {len(used)} used host blocks are not the {self.num_blocks} "
                                 f"there are, each once; {len(self._seqs)} sequences")
