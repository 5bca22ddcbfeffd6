"""Look-ahead gives every new sequence a block more than its tokens take."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.paged import PagedAllocator

BUG = "ascend-mtp-extra-block"
MUST_FAIL = ("alloc/tail-waste-below-one-block", "alloc/prediction-equals-consumption")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Where there is one."""
    allocate = PagedAllocator.allocate

    def allocate_ahead(
        self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        found = allocate(self, seq_id, num_tokens, final_tokens, keys)
        if found is not None and self.num_free_blocks:
            self._seqs[seq_id].blocks += self._take(1)
        return found

    PagedAllocator.allocate = allocate_ahead  # type: ignore[method-assign]
