"""Whether a request can ever fit is told by its prompt alone: one whose answer outgrows the pool ends the engine."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-oversized-prompt-hang"
MUST_FAIL = ("http/oversized-rejected-others-served",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "1024")


def apply() -> None:
    """What it comes to in the end is not looked at."""
    can_ever_hold = PagedAllocator.can_ever_hold
    PagedAllocator.can_ever_hold = (  # type: ignore[method-assign]
        lambda self, prompt, final, n: can_ever_hold(self, prompt, prompt, n))
