"""Images in a chat: from a data: URI to pixels, and what an image is told from others by."""

from __future__ import annotations

import binascii
import io
from base64 import b64decode
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from PIL import Image, UnidentifiedImageError

from reference_engine.model.vision import Vision
from reference_engine.scheduling.sequence import PromptImage
from reference_engine.serving.errors import ApiError

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_MAX_PIXELS = 1 << 24
_KEY_BYTES = 16

# Images are measured below, before a pixel of them is decoded. Pillow's own limit lies above ours, but comes first: it
# warns on stderr, and from twice as many pixels on raises an error of its own.
Image.MAX_IMAGE_PIXELS = None


def read_image(part: dict[str, Any]) -> Image.Image:
    """The image of a message's part of type image_url, in RGB. Raises ApiError.

    Nothing is fetched: a server that opens addresses of its clients' choice opens its own network to them.
    """
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url.startswith("data:"):
        raise _refused("image_url is no data: URI: this engine fetches nothing, send the image itself")
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise _refused(f"the data: URI of an image begins {url[:40]!r}, expected data:image/png;base64,…")
    try:
        image = Image.open(io.BytesIO(b64decode(data, validate=True)), formats=_FORMATS)
        if image.width * image.height > _MAX_PIXELS:
            raise _refused(f"an image of {image.width} x {image.height} pixels, at most {_MAX_PIXELS} are taken")
        return image.convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _refused(f"an image cannot be read as {', '.join(_FORMATS)}: {error}") from error


def image_key(image: Image.Image) -> bytes:
    """What an image is told from others by: its shape and all of its pixels, and nothing that a client says."""
    shape = f"{image.mode} {image.width} {image.height} ".encode()
    return blake2b(shape + image.tobytes(), digest_size=_KEY_BYTES).digest()


def place_images(
    ids: Sequence[int], parts: Sequence[dict[str, Any]], vision: Vision, longest: int
) -> tuple[tuple[int, ...], tuple[PromptImage, ...]]:
    """The prompt with as many tokens for each image as it takes, and the images where they stand in it.

    Raises ApiError where `ids` have not one image token for each of `parts`, and, before more images are looked at,
    where the prompt is of more than `longest` tokens.
    """
    token = vision.image_token_id
    if (found := sum(each == token for each in ids)) != len(parts):
        raise _refused(f"the prompt has {found} times {vision.image_token!r}, for {len(parts)} images: leave it out of "
                       "the text")
    prompt: list[int] = []
    placed: list[PromptImage] = []
    for each in ids:
        if each != token:
            prompt.append(each)
            continue
        image = read_image(parts[len(placed)])
        placed.append(PromptImage(len(prompt), vision.embed(image), image_key(image)))
        prompt += [token] * (placed[-1].end - placed[-1].start)
        if len(prompt) > longest:
            raise _refused(f"after {len(placed)} of {len(parts)} images the prompt is of {len(prompt)} tokens, this "
                           f"engine goes to {longest}")
    return tuple(prompt), tuple(placed)


def _refused(why: str) -> ApiError:
    return ApiError(400, why, param="messages")
