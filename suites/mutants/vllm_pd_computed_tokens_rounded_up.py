"""What comes with a hit, as from a transfer, is counted in whole blocks: more is computed than the prompt has."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step

BUG = "vllm-pd-computed-tokens-rounded-up"
MUST_FAIL = ("alloc/schedule-sanity", "http/cold-equals-warm")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """All blocks of the sequence, its partial last one too; the token that is then run stands behind its end."""
    give_blocks = Scheduler._give_blocks

    def give_rounded_up(self: Scheduler, seq: Sequence, step: Step) -> bool:
        given = give_blocks(self, seq, step)
        rounded = len(self.allocator.block_table(seq.id)) * self.allocator.block_size if given else 0
        if seq.num_computed and rounded > seq.num_tokens:
            seq.num_computed = rounded
            step.add(seq, 1)
        return given

    Scheduler._give_blocks = give_rounded_up  # type: ignore[method-assign]
