"""What a block is found by covers its tokens, and not the adapter that their keys and values were computed with."""

from __future__ import annotations

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "vllm-hash-missing-lora-id"
MUST_FAIL = ("alloc/hash-covers-parent-and-extra-keys", "alloc/block-key-not-predictable",
             "http/salt-isolates")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """All chains begin alike. Over HTTP a salt stands for the adapter: it is the one extra key that there is."""
    root_key = prefix_cache.root_key
    prefix_cache.root_key = scheduler.root_key = lambda *extra: root_key()
