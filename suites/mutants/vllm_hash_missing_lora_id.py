"""What a block is found by covers its tokens, and not the adapter that their keys and values were computed with."""

from __future__ import annotations

from reference_engine.memory import prefix_cache

BUG = "vllm-hash-missing-lora-id"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys", "alloc/block-key-not-predictable")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """All chains begin alike. Only an adapter of the allocator level brings extra keys other than a salt."""
    root_key = prefix_cache.root_key
    prefix_cache.root_key = lambda *extra: root_key()
