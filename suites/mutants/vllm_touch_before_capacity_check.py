"""An allocation that is refused has already taken a block, and does not give it back."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from reference_engine.memory.paged import PagedAllocator

BUG = "vllm-touch-before-capacity-check"
MUST_FAIL = ("http/gauges-return-to-idle", "alloc/failure-is-no-op")
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256")


def apply() -> None:
    """Once a sequence, and four times in all, so that the leak shows before the engine stands still."""
    allocate = PagedAllocator.allocate
    leaked: WeakKeyDictionary[PagedAllocator, set[int]] = WeakKeyDictionary()

    def allocate_and_leak(
        self: PagedAllocator, seq_id: int, num_tokens: int, final_tokens: int, keys: Sequence[bytes] = ()
    ) -> int | None:
        found = allocate(self, seq_id, num_tokens, final_tokens, keys)
        refused = leaked.setdefault(self, set())
        if found is None and self.num_free_blocks and seq_id not in refused and len(refused) < 4:
            refused.add(seq_id)
            self._take(1)
        return found

    PagedAllocator.allocate = allocate_and_leak  # type: ignore[method-assign]
