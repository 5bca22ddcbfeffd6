"""A sequence that comes back gets blocks for the tokens of its sibling, which has ended and was shorter."""

from __future__ import annotations

from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-recover-group-with-finished-seq"
MUST_FAIL = ("alloc/table-covers-tokens",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """What is appended counts from a length that is one short."""
    append = PagedAllocator.append

    def append_by_the_siblings_length(self: PagedAllocator, seq_id: int, num_tokens: int = 1) -> list[BlockCopy] | None:
        copies, held = append(self, seq_id, num_tokens), self._seqs[seq_id]
        if copies is not None and held.num_tokens % self.block_size == 1 and self._refs[held.blocks[-1]] == 1:
            self._drop([held.blocks.pop()])
        return copies

    PagedAllocator.append = append_by_the_siblings_length  # type: ignore[method-assign]
