"""A preempted sample is recovered with the length of its sibling, which has ended: the rest of it is made again."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "vllm-recover-group-with-finished-seq"
MUST_FAIL = ("http/preemption-exact",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256")

_ended: dict[int, int] = {}  # request -> tokens of the sample that ended first


def apply() -> None:
    """The first of a group stands for all of it."""
    finish, preempt = Scheduler.finish, Scheduler._preempt

    def finish_and_note(self: Scheduler, seq: Sequence) -> None:
        _ended.setdefault(seq.request.id, seq.num_tokens)
        finish(self, seq)

    def preempt_as_group(self: Scheduler, seq: Sequence, step: Step) -> None:
        preempt(self, seq, step)
        length = _ended.get(seq.request.id, seq.num_tokens)
        if length < seq.num_tokens:
            del seq.tokens[length:]
            seq.num_tokens = length

    Scheduler.finish = finish_and_note  # type: ignore[method-assign]
    Scheduler._preempt = preempt_as_group  # type: ignore[method-assign]
