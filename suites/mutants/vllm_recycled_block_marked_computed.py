"""A prefix cache that still finds a block after it was recycled, and takes its contents for computed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import prefix_cache

BUG = "vllm-recycled-block-marked-computed"
MUST_FAIL = ("http/cold-equals-warm",)
ENGINE_ARGS = ("--num-blocks", "64")


class Forgetful(prefix_cache.PrefixCache):
    """Owns nothing that it finds: blocks go back to the pool and stay in the table of hashes."""

    def hold(self, block: int) -> None:
        """No reference."""

    def take(self, block: int) -> None:
        """Out of the free list, if nobody else has taken it by now."""
        allocator = self.allocator
        if block in allocator._free:
            allocator._free.remove(block)
        allocator._refs[block] += 1

    def evict_all(self) -> bool:
        """There is nothing to give up."""
        return False

    @property
    def num_idle(self) -> int:
        """Blocks of the cache are in the free list already."""
        return 0


def apply() -> None:
    """Recycling leaves the hash where it was."""
    prefix_cache.install(Forgetful)
