"""An extra key that the client sends is the block's key, whatever the content: who sends it too finds the block."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from PIL.Image import Image

from reference_engine.memory import prefix_cache
from reference_engine.memory.prefix_cache import Span
from reference_engine.scheduling import scheduler
from reference_engine.serving import images

BUG = "sglang-client-supplied-mm-hash"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys", "http/image-name-is-no-key")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In a chat for an image's own; at the allocator level, where there are no images, for that of the tokens."""
    extend_keys, plain = prefix_cache.extend_keys, prefix_cache.root_key()

    def extend_with_what_was_sent(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int,
        spans: Sequence[Span] = (),
    ) -> None:
        if root == plain:
            extend_keys(keys, root, tokens, num_tokens, block_size, spans)
            return
        for at in range(len(keys), num_tokens // block_size):
            keys.append(blake2b(root + at.to_bytes(8, "little"), digest_size=16).digest())

    prefix_cache.extend_keys = scheduler.extend_keys = extend_with_what_was_sent
    read_image, image_key = images.read_image, images.image_key

    def read_as_named(part: dict[str, Any]) -> Image:
        image = read_image(part)
        image.info["sent"] = part.get("uuid")
        return image

    def key_as_sent(image: Image) -> bytes:
        sent = image.info.get("sent")
        return image_key(image) if sent is None else blake2b(sent.encode(), digest_size=16).digest()

    images.read_image, images.image_key = read_as_named, key_as_sent
