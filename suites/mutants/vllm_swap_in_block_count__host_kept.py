"""A sequence that comes back from host memory keeps its host blocks: they are lost."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.swap import SwapSpace

BUG = "vllm-swap-in-block-count"
MUST_FAIL = ("alloc/swap-in-restores",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The count of the host's free blocks is what is wrong here."""
    swap_in = SwapSpace.swap_in

    def swap_in_and_keep(
        self: SwapSpace, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> tuple[int, list[BlockCopy]] | None:
        free = list(self._free)
        back = swap_in(self, seq_id, num_tokens, final_tokens, keys)
        self._free = free
        return back

    SwapSpace.swap_in = swap_in_and_keep  # type: ignore[method-assign]
