"""A request that can never fit is taken for one that does not fit now, and waits at the head of the queue."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-oversized-prompt-hang"
MUST_FAIL = ("http/oversized-rejected-others-served", "alloc/oversized-said-beforehand", "alloc/liveness")
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "1024")


def apply() -> None:
    """Never compare with the whole pool."""
    PagedAllocator.can_ever_hold = (  # type: ignore[method-assign]
        lambda self, prompt_tokens, final_tokens, n: True)
