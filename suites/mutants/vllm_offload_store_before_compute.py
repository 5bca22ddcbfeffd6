"""A block is stored to host memory before the step that fills it has run: it comes back without its last tokens."""

from __future__ import annotations

from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.swap import SwapSpace

BUG = "vllm-offload-store-before-compute"
MUST_FAIL = ("http/preemption-exact",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256", "--preemption-mode", "swap")


def apply() -> None:
    """The last block of a sequence is not stored: what host memory held before comes back."""
    swap_out = SwapSpace.swap_out

    def swap_out_early(self: SwapSpace, seq_id: int, num_computed: int) -> list[BlockCopy] | None:
        copies = swap_out(self, seq_id, num_computed)
        return copies[:-1] if copies else copies

    SwapSpace.swap_out = swap_out_early  # type: ignore[method-assign]
