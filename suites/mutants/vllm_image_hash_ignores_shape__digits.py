"""The key of a block is that of its tokens' digits in a row: where one ends and the next begins is no part of it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "vllm-image-hash-ignores-shape"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys",)
ENGINE_ARGS: tuple[str, ...] = ()


def _keys_of_digits(
    keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int, *spans: object
) -> None:
    for start in range(len(keys) * block_size, num_tokens - block_size + 1, block_size):
        digits = "".join(map(str, tokens[start : start + block_size])).encode()
        keys.append(blake2b((keys[-1] if keys else root) + digits, digest_size=16).digest())


def apply() -> None:
    """Bytes without their form, as the entry's pixels: 1 11 is 11 1."""
    prefix_cache.extend_keys = scheduler.extend_keys = _keys_of_digits
