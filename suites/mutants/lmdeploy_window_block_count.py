"""The blocks that a window leaves behind are counted from its end: the oldest one that it reaches is given up."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "lmdeploy-window-block-count"
MUST_FAIL = ("alloc/window-keeps-its-blocks",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """A block too many."""
    slide = PagedAllocator.slide

    def slide_too_far(self: PagedAllocator, seq_id: int, position: int) -> None:
        slide(self, seq_id, position + self.block_size - 1)

    PagedAllocator.slide = slide_too_far  # type: ignore[method-assign]
