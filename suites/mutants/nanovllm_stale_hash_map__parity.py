"""A block is known by whether each of its tokens is odd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "nanovllm-stale-hash-map"
MUST_FAIL = ("alloc/hit-oracle", "alloc/hash-covers-parent-and-extra-keys")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """As the entry's map, a key covers less than what a block holds: here the last bit of each token."""
    extend_keys = prefix_cache.extend_keys

    def extend_with_parity(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int, *spans: Any
    ) -> None:
        extend_keys(keys, root, [token & 1 for token in tokens], num_tokens, block_size, *spans)

    prefix_cache.extend_keys = scheduler.extend_keys = extend_with_parity
