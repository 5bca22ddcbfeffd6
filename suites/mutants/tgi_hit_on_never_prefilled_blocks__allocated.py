"""Blocks may be found from the moment they are allocated: whoever finds one takes for computed what nobody wrote."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.paged import PagedAllocator

BUG = "tgi-hit-on-never-prefilled-blocks"
MUST_FAIL = ("alloc/hit-oracle",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Published before any step has run."""
    allocate = PagedAllocator.allocate

    def allocate_and_publish(
        self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        found = allocate(self, seq_id, num_tokens, final_tokens, keys)
        if found is not None:
            self.publish(seq_id, keys)
        return found

    PagedAllocator.allocate = allocate_and_publish  # type: ignore[method-assign]
