"""A block is known by what it will hold before its last slot is written, and still is when other tokens come there."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory import prefix_cache

BUG = "openvino-partial-block-stale-hash"
MUST_FAIL = ("alloc/hit-oracle",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Keys are made a token early."""
    extend_keys = prefix_cache.extend_keys

    def extend_early(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int
    ) -> None:
        extend_keys(keys, root, tokens, min(num_tokens + 1, len(tokens)), block_size)

    prefix_cache.extend_keys = extend_early
