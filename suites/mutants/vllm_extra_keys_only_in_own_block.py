"""The extra keys tell the first block apart, and do not reach the key that the next block builds on."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "vllm-extra-keys-only-in-own-block"
MUST_FAIL = ("alloc/block-key-not-predictable", "http/salt-isolates")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Behind the first block the chain goes on as if there were none. Over HTTP the salt is the extra key there is."""
    extend_keys, plain = prefix_cache.extend_keys, prefix_cache.root_key()

    def extend_without(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int
    ) -> None:
        own: list[bytes] = []
        extend_keys(own, root, tokens, num_tokens, block_size)
        others: list[bytes] = []
        extend_keys(others, plain, tokens, num_tokens, block_size)
        keys += [*own[:1], *others[1:]][len(keys) :]

    prefix_cache.extend_keys = scheduler.extend_keys = extend_without
