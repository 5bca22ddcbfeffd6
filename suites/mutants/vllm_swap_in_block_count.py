"""The blocks that a swap-in takes are counted from what was computed, and the token that comes next has none."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.swap import SwapSpace

BUG = "vllm-swap-in-block-count"
MUST_FAIL = ("alloc/swap-in-restores",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """One block less than the tokens take, where they end in a block of their own."""
    swap_in = SwapSpace.swap_in

    def swap_in_short(
        self: SwapSpace, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> tuple[int, list[BlockCopy]] | None:
        back = swap_in(self, seq_id, num_tokens, final_tokens, keys)
        held = getattr(self._allocator, "_seqs", {}).get(seq_id)
        if back is not None and num_tokens % self._allocator.block_size == 1 and len(getattr(held, "blocks", ())) > 1:
            self._allocator._drop([held.blocks.pop()])  # type: ignore[attr-defined]
        return back

    SwapSpace.swap_in = swap_in_short  # type: ignore[method-assign]
