"""A prefix cache that still finds a block after it was recycled, and takes its contents for computed."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import PrefixCache

BUG = "vllm-recycled-block-marked-computed"
MUST_FAIL = ("http/cold-equals-warm",)
ENGINE_ARGS = ("--num-blocks", "64")


def _share(self: PagedAllocator, block: int) -> None:
    """Out of the free list, if nobody else has taken it by now."""
    if block in self._free:
        self._free.remove(block)
    self._refs[block] += 1


def apply() -> None:
    """A block that loses its last owner is free at once, and its key stays where it was."""
    PrefixCache.keep = lambda self, block: False  # type: ignore[method-assign]
    PagedAllocator._share = _share  # type: ignore[method-assign]
