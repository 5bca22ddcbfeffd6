"""A prompt is also given the partly filled last block of another of its length, and both write behind its end."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.paged import PagedAllocator

BUG = "atlas-partial-tail-two-writers"
MUST_FAIL = ("alloc/single-writer",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """No copy before the first write."""
    allocate = PagedAllocator.allocate

    def allocate_with_a_tail(
        self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        found = allocate(self, seq_id, num_tokens, final_tokens, keys)
        if found is None or num_tokens % self.block_size == 0:
            return found
        mine = self._seqs[seq_id]
        for other in self._seqs.values():
            if other is not mine and other.num_tokens == num_tokens and other.blocks[:-1] == mine.blocks[:-1]:
                self._drop([mine.blocks[-1]])
                self._refs[other.blocks[-1]] += 1
                mine.blocks[-1] = other.blocks[-1]
                break
        return found

    PagedAllocator.allocate = allocate_with_a_tail  # type: ignore[method-assign]
