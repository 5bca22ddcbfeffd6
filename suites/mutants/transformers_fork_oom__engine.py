"""A fork copies its parent's last block and does not ask whether one is free: it leaves half a child, and all end."""

from __future__ import annotations

from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.paged import PagedAllocator

BUG = "transformers-fork-oom"
MUST_FAIL = ("http/preemption-exact",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256")


def apply() -> None:
    """At once, where the sound engine copies before the first write."""
    fork = PagedAllocator.fork

    def fork_and_copy(self: PagedAllocator, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        copies = fork(self, parent_id, child_id)
        child = self._seqs[child_id]
        if copies is None or child.num_tokens % self.block_size == 0:
            return copies
        source = child.blocks.pop()
        child.blocks += (own := self._take(1))  # by now the child stands in the books, without its last block
        self._drop([source])
        return [*copies, BlockCopy(source, own[0])]

    PagedAllocator.fork = fork_and_copy  # type: ignore[method-assign]
