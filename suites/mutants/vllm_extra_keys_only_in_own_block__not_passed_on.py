"""The keys of images are made, and do not get to where blocks are looked up: a prompt is what its placeholders are."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory import prefix_cache
from reference_engine.memory.prefix_cache import Span
from reference_engine.scheduling import scheduler

BUG = "vllm-extra-keys-only-in-own-block"
MUST_FAIL = ("http/image-identity",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """As vLLM #15668 had it, which the entry names beside its own."""
    extend_keys = prefix_cache.extend_keys

    def extend_without(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int,
        spans: Sequence[Span] = (),
    ) -> None:
        extend_keys(keys, root, tokens, num_tokens, block_size)

    prefix_cache.extend_keys = scheduler.extend_keys = extend_without
