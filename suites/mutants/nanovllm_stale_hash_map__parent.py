"""A block is known by its own tokens and those of the block before it, whatever stood before these."""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import Any

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "nanovllm-stale-hash-map"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys", "http/same-block-behind-another-prefix")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The key of a block begins anew a block before it."""
    def extend_keys(
        keys: list[bytes], root: bytes, tokens: Any, num_tokens: int, block_size: int, *spans: object
    ) -> None:
        for start in range(len(keys) * block_size, num_tokens - block_size + 1, block_size):
            both = array("q", tokens[max(0, start - block_size) : start + block_size]).tobytes()
            keys.append(blake2b(root + both, digest_size=16).digest())

    prefix_cache.extend_keys = scheduler.extend_keys = extend_keys  # type: ignore[attr-defined]
