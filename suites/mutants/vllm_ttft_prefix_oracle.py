"""One prefix cache for all: the salt is no part of a block's key, so a hit tells what others have sent."""

from __future__ import annotations

from reference_engine.memory import prefix_cache
from reference_engine.scheduling import scheduler

BUG = "vllm-ttft-prefix-oracle"
MUST_FAIL = ("http/salt-isolates",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Every chain of keys begins alike."""
    scheduler.root_key = lambda *extra: prefix_cache.root_key()
