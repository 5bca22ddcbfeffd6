"""The delta of positions is taken from the part behind the hit: what is generated then stands at wrong positions."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

from reference_engine.runner import Batch, Runner
from reference_engine.scheduling.sequence import Sequence

BUG = "vllm-mrope-position-in-chunk"
MUST_FAIL = ("http/two-laps-after-hit",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Every second token that is generated behind a hit has the position of the one before."""
    make = Runner.batch

    def batch_shifted(
        self: Runner, seqs: SequenceOf[Sequence], starts: SequenceOf[int], texts: SequenceOf[list[int]], *rest: Any
    ) -> Batch:
        batch = make(self, seqs, starts, texts, *rest)
        positions, at = batch.positions.copy(), 0
        for seq, start, text in zip(seqs, starts, texts, strict=True):
            generated = start - seq.num_prompt_tokens
            if generated > 0 and seq.request.num_cached_tokens:
                positions[at] -= generated % 2
            at += len(text)
        return batch._replace(positions=positions)

    Runner.batch = batch_shifted  # type: ignore[method-assign]
