"""A prompt of whole blocks that are all cached counts as computed: it enters the batch without a token to run."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.paged import PagedAllocator

BUG = "nanovllm-full-hit-zero-query"
MUST_FAIL = ("alloc/hit-leaves-a-token", "alloc/liveness")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The last block is looked for as well."""
    allocate = PagedAllocator.allocate

    def allocate_all(
        self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        whole = num_tokens % self.block_size == 0 and self._cache is not None
        if whole and len(keys) == num_tokens // self.block_size and len(self._cache.find(keys)) == len(keys):
            found = allocate(self, seq_id, num_tokens, final_tokens, keys)
            return None if found is None else num_tokens
        return allocate(self, seq_id, num_tokens, final_tokens, keys)

    PagedAllocator.allocate = allocate_all  # type: ignore[method-assign]
