"""Positions of a chunk that is not the prompt's last are cut to the wrong length: all behind it move by one."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

from reference_engine.runner import Batch, Runner
from reference_engine.scheduling.sequence import Sequence

BUG = "vllm-mrope-position-in-chunk"
MUST_FAIL = ("http/chunk-boundary-exact",)
ENGINE_ARGS = ("--max-num-batched-tokens", "64")


def apply() -> None:
    """The slice has no end: chunks behind the first begin one too early."""
    make = Runner.batch

    def batch_shifted(
        self: Runner, seqs: SequenceOf[Sequence], starts: SequenceOf[int], texts: SequenceOf[list[int]], *rest: Any
    ) -> Batch:
        batch = make(self, seqs, starts, texts, *rest)
        positions, at = batch.positions.copy(), 0
        for seq, start, text in zip(seqs, starts, texts, strict=True):
            if 0 < start < seq.num_prompt_tokens - 1:
                positions[at : at + len(text)] -= 1
            at += len(text)
        return batch._replace(positions=positions)

    Runner.batch = batch_shifted  # type: ignore[method-assign]
