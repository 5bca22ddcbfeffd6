"""Look-ahead gives every new sequence a block more than its tokens take."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.allocator import BlockCopy, SequenceBlocks
from reference_engine.memory.paged import PagedAllocator

BUG = "ascend-mtp-extra-block"
MUST_FAIL = ("alloc/tail-waste-below-one-block", "alloc/prediction-equals-consumption")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Where there is one. Growth takes it first, and a fork gives it back: nothing else is wrong."""
    allocate, need, fork = PagedAllocator.allocate, PagedAllocator._need_of_growth, PagedAllocator.fork

    def allocate_ahead(
        self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        found = allocate(self, seq_id, num_tokens, final_tokens, keys)
        if found is not None and self.num_free_blocks:
            self._seqs[seq_id].blocks += self._take(1)
        return found

    def need_behind_it(self: PagedAllocator, held: SequenceBlocks, num_tokens: int) -> tuple[int, bool]:
        missing, copy_last = need(self, held, num_tokens)
        return max(0, missing), copy_last

    def fork_without_it(self: PagedAllocator, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        self.truncate(parent_id, self._seqs[parent_id].num_tokens)
        return fork(self, parent_id, child_id)

    PagedAllocator.allocate = allocate_ahead  # type: ignore[method-assign]
    PagedAllocator._need_of_growth = need_behind_it  # type: ignore[method-assign]
    PagedAllocator.fork = fork_without_it  # type: ignore[method-assign]
