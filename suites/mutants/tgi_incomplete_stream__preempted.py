"""What was generated before a preemption counts as prompt, and no more as generated."""

from __future__ import annotations

from typing import Any

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.serving.answers import Answer

BUG = "tgi-incomplete-stream"
MUST_FAIL = ("http/preemption-exact",)
ENGINE_ARGS = ("--num-blocks", "24")


def apply() -> None:
    """As one counts who sends it through the prefill again."""
    preempt, usage = Scheduler._preempt, Answer.usage
    made: dict[int, int] = {}  # request -> tokens that it had when it was preempted

    def preempt_and_note(self: Scheduler, seq: Any, step: Any) -> None:
        made[seq.request.id] = max(made.get(seq.request.id, 0), seq.num_output_tokens)
        preempt(self, seq, step)

    def usage_of_prefills(self: Answer) -> dict[str, Any]:
        told = usage(self)
        more = sum(made.get(request.id, 0) for request in self._requests)
        return told | {"prompt_tokens": told["prompt_tokens"] + more,
                       "completion_tokens": told["completion_tokens"] - more}

    Scheduler._preempt = preempt_and_note  # type: ignore[method-assign]
    Answer.usage = usage_of_prefills  # type: ignore[method-assign]
