"""Of an extra key the first four characters count: adapters whose names begin alike share blocks."""

from __future__ import annotations

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "vllm-hash-missing-lora-id"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys", "alloc/block-key-not-predictable")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The rest of each is missing."""
    root_key = prefix_cache.root_key
    prefix_cache.root_key = scheduler.root_key = lambda *extra: root_key(*(key[:4] for key in extra))
