"""A prompt whose whole blocks are all cached has nothing to fetch, and nobody says that they may be freed."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-nixl-full-hit-no-release"
MUST_FAIL = ("http/gauges-return-to-idle",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """One reference too many on the blocks of a full hit."""
    allocate = PagedAllocator.allocate

    def allocate_and_hold(
        self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        found = allocate(self, seq_id, num_tokens, final_tokens, keys)
        if found and found + self.block_size >= num_tokens:
            for block in self.block_table(seq_id)[: found // self.block_size]:
                self._refs[block] += 1
        return found

    PagedAllocator.allocate = allocate_and_hold  # type: ignore[method-assign]
