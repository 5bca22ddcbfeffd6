"""A prefix cache that knows a block by its own tokens alone, whatever stood before it."""

from __future__ import annotations

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "nanovllm-stale-hash-map"
MUST_FAIL = ("http/same-block-behind-another-prefix", "alloc/hash-covers-parent-and-extra-keys")
ENGINE_ARGS: tuple[str, ...] = ()

_extend_keys = prefix_cache.extend_keys


def _keys_of_blocks_alone(
    keys: list[bytes], root: bytes, tokens: list[int], num_tokens: int, block_size: int, *spans: object
) -> None:
    for start in range(len(keys) * block_size, num_tokens - block_size + 1, block_size):
        _extend_keys(alone := [], root, tokens[start : start + block_size], block_size, block_size)
        keys += alone


def apply() -> None:
    """The hash leaves out the parent."""
    prefix_cache.extend_keys = scheduler.extend_keys = _keys_of_blocks_alone  # type: ignore[assignment]
