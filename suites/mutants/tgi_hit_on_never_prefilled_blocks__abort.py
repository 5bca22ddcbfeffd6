"""Blocks are in the prefix cache from the moment they are allocated: also those of a prompt that was never computed."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "tgi-hit-on-never-prefilled-blocks"
MUST_FAIL = ("http/abort-in-prefill",)
ENGINE_ARGS = ("--max-num-batched-tokens", "64")


def apply() -> None:
    """Inserted at allocation."""
    give = Scheduler._give_blocks

    def give_and_publish(self: Scheduler, seq: Sequence, step: Step) -> bool:
        given = give(self, seq, step)
        if given and self._caches_prefixes:
            self._extend_keys(seq, seq.num_tokens)
            self.allocator.publish(seq.id, seq.keys)
        return given

    Scheduler._give_blocks = give_and_publish  # type: ignore[method-assign]
