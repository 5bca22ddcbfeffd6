"""A sequence that ends in host memory keeps its host blocks: they are lost."""

from __future__ import annotations

from reference_engine.memory.swap import SwapSpace

BUG = "vllm-swap-in-block-count"
MUST_FAIL = ("alloc/swap-in-restores",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """As when its client leaves while it waits there."""

    def forget(self: SwapSpace, seq_id: int) -> None:
        del self._seqs[seq_id]

    SwapSpace.discard = forget  # type: ignore[method-assign]
