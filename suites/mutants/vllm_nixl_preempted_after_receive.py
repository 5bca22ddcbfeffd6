"""After a preemption a sequence takes its prompt for computed, as if what it once received were still there."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "vllm-nixl-preempted-after-receive"
MUST_FAIL = ("http/preemption-exact",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256", "--no-enable-prefix-caching")


def apply() -> None:
    """The count of computed tokens is read again from the request."""
    give = Scheduler._give_blocks

    def give_and_believe(self: Scheduler, seq: Sequence, step: Step) -> bool:
        was_preempted = seq.num_lost > 0
        given = give(self, seq, step)
        if given and was_preempted:
            seq.num_computed = max(seq.num_computed, seq.num_prompt_tokens - 1)
        return given

    Scheduler._give_blocks = give_and_believe  # type: ignore[method-assign]
