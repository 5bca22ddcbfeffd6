"""Behind blocks that the cache still had, a sequence gets its first host blocks back, not those that follow."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.swap import SwapSpace

BUG = "vllm-swap-in-block-count"
MUST_FAIL = ("alloc/swap-in-restores",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The hits are left out of the count, as #6849 did: of the host blocks here."""
    swap_in = SwapSpace.swap_in

    def swap_in_from_the_first(
        self: SwapSpace, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> tuple[int, list[BlockCopy]] | None:
        host = list(self._seqs[seq_id])
        back = swap_in(self, seq_id, num_tokens, final_tokens, keys)
        if back is None:
            return None
        return back[0], [BlockCopy(first, copy.target) for first, copy in zip(host, back[1], strict=False)]

    SwapSpace.swap_in = swap_in_from_the_first  # type: ignore[method-assign]
