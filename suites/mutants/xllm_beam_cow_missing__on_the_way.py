"""Beams that part behind their first token write into one block: it is copied at the prompt's end alone."""

from __future__ import annotations

from typing import Any

from reference_engine.memory.paged import PagedAllocator
from reference_engine.sampling.beam import BeamSearch

BUG = "xllm-beam-cow-missing"
MUST_FAIL = ("http/beam-isolated",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """What a late fork and its parent hold is never copied."""
    fork, must_copy = BeamSearch._fork, PagedAllocator._must_copy_last
    late: set[int] = set()

    def note_late_forks(self: BeamSearch, parent: Any) -> Any:
        child = fork(self, parent)
        if parent.num_output_tokens > 0:
            late.update(id(self._scheduler.allocator._seqs.get(seq.id)) for seq in (parent, child))
        return child

    BeamSearch._fork = note_late_forks  # type: ignore[method-assign]
    PagedAllocator._must_copy_last = (  # type: ignore[method-assign]
        lambda self, held: id(held) not in late and must_copy(self, held))
