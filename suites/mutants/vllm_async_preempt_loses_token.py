"""A preempted sequence forgets the token that was in flight, and makes it a second time."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "vllm-async-preempt-loses-token"
MUST_FAIL = ("http/preemption-exact",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256")


def apply() -> None:
    """Run again without the last token."""
    preempt = Scheduler._preempt

    def preempt_and_forget(self: Scheduler, seq: Sequence, step: Step) -> None:
        preempt(self, seq, step)
        if seq.num_output_tokens > 1:
            seq.tokens.pop()
            seq.num_tokens -= 1

    Scheduler._preempt = preempt_and_forget  # type: ignore[method-assign]
