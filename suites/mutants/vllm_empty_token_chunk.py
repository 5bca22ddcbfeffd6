"""When those who run have used up the budget of a step, the next in the queue is let in with a chunk of no tokens."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.step import Step

BUG = "vllm-empty-token-chunk"
MUST_FAIL = ("alloc/schedule-sanity",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """A seat and blocks are asked for, and nobody asks whether a token is left."""
    admit = Scheduler._admit

    def admit_to_nothing(self: Scheduler, step: Step, budget: int) -> None:
        at = len(step.sequences)
        admit(self, step, max(budget, 1))
        if budget <= 0:
            step.num_new[at:] = [0] * len(step.num_new[at:])

    Scheduler._admit = admit_to_nothing  # type: ignore[method-assign]
