"""A prefix cache that keeps every block, and finds none again."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.prefix_cache import PrefixCache

BUG = "vllm-evict-duplicate-hides-survivor"
MUST_FAIL = ("alloc/completeness",)
ENGINE_ARGS: tuple[str, ...] = ()


def _find_nothing(self: PrefixCache, keys: Sequence[bytes]) -> list[int]:
    return []


def apply() -> None:
    """What asks about hits has nothing to ask of it: those requirements are UNSUPPORTED, not passed."""
    PrefixCache.find = _find_nothing  # type: ignore[method-assign]
