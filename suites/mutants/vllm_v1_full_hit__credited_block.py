"""A prompt of whole blocks that is all in the cache is credited with its last block too, which is computed again."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "vllm-v1-full-hit"
MUST_FAIL = ("http/cached-tokens-match-block-model",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """One block too many at an exact boundary."""
    count = Scheduler._count_admission

    def count_generously(self: Scheduler, seq: Sequence, cached: int, step: Step, *, looked: bool) -> None:
        size = self.allocator.block_size
        count(self, seq, cached + size if cached and cached + size == seq.num_tokens else cached, step, looked=looked)

    Scheduler._count_admission = count_generously  # type: ignore[method-assign]
