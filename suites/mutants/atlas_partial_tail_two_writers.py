"""A prefix cache that also hands out the partly filled last block, to several who then write behind its end."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import prefix_cache

BUG = "atlas-partial-tail-two-writers"
MUST_FAIL = ("http/shared-prefix-divergence",)
ENGINE_ARGS: tuple[str, ...] = ()


class PartialTails(prefix_cache.PrefixCache):
    """Finds any beginning, not only whole blocks."""

    def store(self, seq: prefix_cache.Sequence) -> None:
        """Whole blocks, and the tail."""
        super().store(seq)
        tail = seq.num_computed % self.allocator.block_size
        key, block = tuple(seq.tokens[: seq.num_computed]), self.allocator.block_table(seq.id)[-1]
        if tail and key not in self.blocks:
            self.blocks[key] = block
            self.hold(block)

    def match(self, tokens: list[int]) -> tuple[list[int], int]:
        """Whole blocks, then the longest tail behind them."""
        blocks, found = super().match(tokens)
        for end in range(min(len(tokens) - 1, found + self.allocator.block_size - 1), found, -1):
            tail = self.blocks.get(tuple(tokens[:end]))
            if tail is not None:
                return [*blocks, tail], end
        return blocks, found


def apply() -> None:
    """Without a copy before the first write."""
    prefix_cache.install(PartialTails)
