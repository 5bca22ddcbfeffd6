"""The extra keys tell the first block apart, and do not reach the key that the next block builds on."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory import prefix_cache
from reference_engine.memory.prefix_cache import Span
from reference_engine.scheduling import scheduler

BUG = "vllm-extra-keys-only-in-own-block"
MUST_FAIL = ("alloc/block-key-not-predictable", "http/salt-isolates",
             "http/image-identity")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Behind the first block, and those of images, the chain goes on as if there were none."""
    extend_keys, plain = prefix_cache.extend_keys, prefix_cache.root_key()

    def extend_without(
        keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int,
        spans: Sequence[Span] = (),
    ) -> None:
        own: list[bytes] = []
        extend_keys(own, root, tokens, num_tokens, block_size, spans)
        others: list[bytes] = []
        extend_keys(others, plain, tokens, num_tokens, block_size)
        behind = max([1, *(-(-span.end // block_size) for span in spans)])
        keys += [*own[:behind], *others[behind:]][len(keys) :]

    prefix_cache.extend_keys = scheduler.extend_keys = extend_without
