"""Prompts are held against the budget of a step in whole blocks: one just as large as the budget never starts."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "tgi-prefill-budget-not-block-multiple"
MUST_FAIL = ("alloc/liveness", "http/ring-exact")
ENGINE_ARGS = ("--max-num-batched-tokens", "40", "--max-num-seqs", "8")


def apply() -> None:
    """What fits by its tokens has to fit by its blocks too; longer prompts come in pieces, as before."""
    give_blocks = Scheduler._give_blocks

    def give_if_rounded_fits(self: Scheduler, seq: Sequence, step: Step) -> bool:
        size, budget = self.allocator.block_size, self.config.max_num_batched_tokens
        rounded = -(-seq.num_tokens // size) * size
        return not seq.num_tokens <= budget < rounded and give_blocks(self, seq, step)

    Scheduler._give_blocks = give_if_rounded_fits  # type: ignore[method-assign]
