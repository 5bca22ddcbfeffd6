"""The last block of every sequence that ends is given back twice, so two later sequences get it."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "sglang-overlap-double-free"
MUST_FAIL = ("http/concurrent-isolation", "http/gauges-in-range", "alloc/conservation",
             "alloc/pinned-is-safe", "alloc/no-use-after-free")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Once by the end of the request, once by the step that was in flight."""
    free = PagedAllocator.free

    def free_twice(self: PagedAllocator, seq_id: int) -> None:
        last = self.block_table(seq_id)[-1]
        free(self, seq_id)
        self._free.append(last)

    PagedAllocator.free = free_twice  # type: ignore[method-assign]
