"""A hit on a block that is in use takes no reference: it is free as soon as its first holder ends."""

from __future__ import annotations

from collections.abc import Iterable

from reference_engine.memory.paged import PagedAllocator

BUG = "minisgl-handle-stores-root"
MUST_FAIL = ("http/shared-block-outlives-first-holder", "alloc/pinned-is-safe", "alloc/no-use-after-free")
ENGINE_ARGS = ("--num-blocks", "48")


def apply() -> None:
    """Who joins locks nothing."""
    share, drop = PagedAllocator._share, PagedAllocator._drop

    def share_unlocked(self: PagedAllocator, block: int) -> None:
        if self._refs[block] == 0:
            share(self, block)

    def drop_once(self: PagedAllocator, blocks: Iterable[int]) -> None:
        drop(self, [block for block in blocks if self._refs[block] > 0])

    PagedAllocator._share = share_unlocked  # type: ignore[method-assign]
    PagedAllocator._drop = drop_once  # type: ignore[method-assign]
