"""What a window leaves behind goes to the free list at once, and the prefix cache still finds it there."""

from __future__ import annotations

from reference_engine.memory.allocator import HOLE
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import PrefixCache

BUG = "vllm-swa-block-freed-in-flight"
MUST_FAIL = ("alloc/window-keeps-its-blocks",)
ENGINE_ARGS: tuple[str, ...] = ()


def _slide(self: PagedAllocator, seq_id: int, position: int) -> None:
    held = self._seqs[seq_id]
    for at in range(held.num_holes, min(position, held.num_tokens) // self.block_size):
        block = held.blocks[at]
        self._refs[block] -= 1
        if self._refs[block] == 0:
            self._free.append(block)
        held.blocks[at], held.num_holes = HOLE, at + 1


def _claim(self: PrefixCache, block: int) -> None:
    self._idle.pop(block, None)


def apply() -> None:
    """Freed while somebody may yet read it: not the step in flight, as in the entry, but who finds it."""
    PagedAllocator.slide, PrefixCache.claim = _slide, _claim  # type: ignore[method-assign]
