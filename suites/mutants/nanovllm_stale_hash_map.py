"""A prefix cache that knows a block by its own tokens alone, whatever stood before it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import prefix_cache

BUG = "nanovllm-stale-hash-map"
MUST_FAIL = ("http/same-block-behind-another-prefix",)
ENGINE_ARGS: tuple[str, ...] = ()


class WithoutParent(prefix_cache.PrefixCache):
    """The hash leaves out the parent."""

    def key(self, tokens: list[int], end: int) -> prefix_cache.Tokens:
        """The tokens of the block."""
        return tuple(tokens[end - self.allocator.block_size : end])


def apply() -> None:
    """Compare only the block's own tokens."""
    prefix_cache.install(WithoutParent)
