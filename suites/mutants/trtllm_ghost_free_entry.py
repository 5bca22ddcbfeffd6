"""A block that is found again keeps its entry among those that may be evicted: given back, it is there twice."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "trtllm-ghost-free-entry"
MUST_FAIL = ("alloc/conservation", "alloc/free-order-irrelevant")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Claimed without being unlinked: the ghost is one of the free blocks when the last owner has gone."""
    share = PagedAllocator._share

    def share_and_leave_a_ghost(self: PagedAllocator, block: int) -> None:
        was_idle = self._refs[block] == 0
        share(self, block)
        if was_idle:
            self._free.insert(0, block)

    PagedAllocator._share = share_and_leave_a_ghost  # type: ignore[method-assign]
