"""A prefix cache that still finds a block after it was recycled, and takes its contents for computed."""

from __future__ import annotations

from reference_engine.memory.prefix_cache import PrefixCache

BUG = "vllm-recycled-block-marked-computed"
MUST_FAIL = ("http/cold-equals-warm", "alloc/hit-oracle")
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256")


def apply() -> None:
    """Recycling leaves the block where its old key finds it."""
    PrefixCache._forget = lambda self, block: self._keys.pop(block, None)  # type: ignore[method-assign]
