"""A block is found by a hash of few bits, and its tokens are not compared: two prompts with one key can be made."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory import prefix_cache

BUG = "vllm-predictable-none-hash"
MUST_FAIL = ("alloc/block-key-not-predictable",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Eight bytes of each key."""
    extend_keys = prefix_cache.extend_keys

    def extend_narrow(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int
    ) -> None:
        extend_keys(keys, root, tokens, num_tokens, block_size)
        keys[:] = [key[:8] for key in keys]

    prefix_cache.extend_keys = extend_narrow
