"""A sequence that was preempted finds its blocks again, and is scheduled whole behind them."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "nanovllm-preempt-then-hit-overrun"
MUST_FAIL = ("alloc/schedule-sanity", "http/preemption-exact")
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256")

_resumed: set[int] = set()  # sequences let in again by this step


def apply() -> None:
    """Count what is scheduled as if nothing had been found."""
    give_blocks, add = Scheduler._give_blocks, Step.add

    def give_and_note(self: Scheduler, seq: Sequence, step: Step) -> bool:
        was_preempted = seq.num_lost > 0
        given = give_blocks(self, seq, step)
        if given and was_preempted and seq.num_computed:
            _resumed.add(seq.id)
        return given

    def add_whole(self: Step, seq: Sequence, num_new: int) -> None:
        whole = seq.id in _resumed
        _resumed.discard(seq.id)
        add(self, seq, seq.num_tokens if whole else num_new)

    Scheduler._give_blocks = give_and_note  # type: ignore[method-assign]
    Step.add = add_whole  # type: ignore[method-assign]
