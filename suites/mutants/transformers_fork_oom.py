"""A fork copies its parent's blocks instead of sharing them, and takes what there is when they are too many."""

from __future__ import annotations

from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.paged import PagedAllocator

BUG = "transformers-fork-oom"
MUST_FAIL = ("alloc/fork-shares-all-full-blocks", "alloc/failure-is-no-op")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """A block of one's own for each; out of memory, half a child is left behind."""
    fork = PagedAllocator.fork

    def fork_by_copying(self: PagedAllocator, parent_id: int, child_id: int) -> list[BlockCopy] | None:
        blocks = list(self._seqs[parent_id].blocks)
        if len(blocks) > self.num_free_blocks:
            self._take(self.num_free_blocks)
            return None
        copies = fork(self, parent_id, child_id)
        assert copies is not None, "a fork that shares is never refused"
        own = self._take(len(blocks))
        self._drop(blocks)
        self._seqs[child_id].blocks[:] = own
        return [BlockCopy(source, target) for source, target in zip(blocks, own, strict=True)]

    PagedAllocator.fork = fork_by_copying  # type: ignore[method-assign]
