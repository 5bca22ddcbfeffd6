"""The key of an image is that of its bytes: on its side it is the same image."""

from __future__ import annotations

from reference_engine.memory import prefix_cache

BUG = "vllm-image-hash-ignores-shape"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """"30x100" and "100x30" have the same sides. The engine takes no images: the allocator level brings their keys."""
    root_key = prefix_cache.root_key
    prefix_cache.root_key = lambda *extra: root_key(*("x".join(sorted(key.split("x"))) for key in extra))
