"""The key of an image is that of its bytes: on its side it is the same image."""

from __future__ import annotations

from hashlib import blake2b

from reference_engine.memory import prefix_cache
from reference_engine.serving import images

BUG = "vllm-image-hash-ignores-shape"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys", "http/image-identity")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Over HTTP of its pixels alone; as the allocator level names them, "30x100" and "100x30" have the same sides."""
    root_key = prefix_cache.root_key
    prefix_cache.root_key = lambda *extra: root_key(*("x".join(sorted(key.split("x"))) for key in extra))
    images.image_key = lambda image: blake2b(image.tobytes(), digest_size=16).digest()
