"""Two blocks hold the same prefix; evicting one of them forgets the key, and the other is never found again."""

from __future__ import annotations

from reference_engine.memory.prefix_cache import PrefixCache

BUG = "vllm-evict-duplicate-hides-survivor"
MUST_FAIL = ("alloc/completeness",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The key goes with the first of its blocks."""

    def forget_all(self: PrefixCache, block: int) -> None:
        self._blocks.pop(self._keys.pop(block), None)

    PrefixCache._forget = forget_all  # type: ignore[method-assign]
