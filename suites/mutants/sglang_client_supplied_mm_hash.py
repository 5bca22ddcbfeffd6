"""An extra key that the client sends is the block's key, whatever the content: who sends it too finds the block."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "sglang-client-supplied-mm-hash"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The engine takes no images: here tokens are what a hash is sent in place of."""
    extend_keys, plain = prefix_cache.extend_keys, prefix_cache.root_key()

    def extend_with_what_was_sent(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int
    ) -> None:
        if root == plain:
            extend_keys(keys, root, tokens, num_tokens, block_size)
            return
        for at in range(len(keys), num_tokens // block_size):
            keys.append(blake2b(root + at.to_bytes(8, "little"), digest_size=16).digest())

    prefix_cache.extend_keys = scheduler.extend_keys = extend_with_what_was_sent
