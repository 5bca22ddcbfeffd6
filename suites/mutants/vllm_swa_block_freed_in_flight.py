"""What leaves the window with the next step is freed now, while that step is in flight and reads it."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-swa-block-freed-in-flight"
MUST_FAIL = ("alloc/window-keeps-its-blocks",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The window is taken to stand where it does when the step in flight, a decode, has ended."""
    slide = PagedAllocator.slide

    def slide_ahead(self: PagedAllocator, seq_id: int, position: int) -> None:
        slide(self, seq_id, position + 1)

    PagedAllocator.slide = slide_ahead  # type: ignore[method-assign]
