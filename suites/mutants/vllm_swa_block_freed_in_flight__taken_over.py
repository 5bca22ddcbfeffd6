"""What leaves the window with the next step is freed before it, and others may write there while that step reads it."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-swa-block-freed-in-flight"
MUST_FAIL = ("http/sliding-window-exact",)
ENGINE_ARGS = ("--no-enable-prefix-caching",)  # which would keep what is freed until the pool has been used up


def apply() -> None:
    """The block table that the step in flight was given still names the block."""
    slide = PagedAllocator.slide

    def slide_ahead(self: PagedAllocator, seq_id: int, position: int) -> None:
        slide(self, seq_id, position)
        held = self._seqs[seq_id]
        at = held.num_holes
        block = held.blocks[at]
        slide(self, seq_id, position + 1)
        if held.num_holes > at:
            held.blocks[at] = block

    PagedAllocator.slide = slide_ahead  # type: ignore[method-assign]
