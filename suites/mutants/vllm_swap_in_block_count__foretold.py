"""What a prompt will take is foretold without the cached blocks that it finds and that nobody holds: it takes more."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-swap-in-block-count"
MUST_FAIL = ("alloc/prediction-equals-consumption",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """As #6849 left out the hits that sat in the evictor. What is taken, and what is refused, is right."""

    def cost_without_idle(
        self: PagedAllocator, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        _, _, missing = self._need_of_new(num_tokens, keys)
        return missing if missing <= self.num_free_blocks else None

    PagedAllocator.cost_of_new = cost_without_idle  # type: ignore[method-assign]
