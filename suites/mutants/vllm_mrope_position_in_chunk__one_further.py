"""Positions go on one too far behind a hit: only the first generated token has lost the one before it."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

from reference_engine.runner import Batch, Runner
from reference_engine.scheduling.sequence import Sequence

BUG = "vllm-mrope-position-in-chunk"
MUST_FAIL = ("http/two-laps-after-hit",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """What is generated behind a hit stands one position too late."""
    make = Runner.batch

    def batch_shifted(
        self: Runner, seqs: SequenceOf[Sequence], starts: SequenceOf[int], texts: SequenceOf[list[int]], *rest: Any
    ) -> Batch:
        batch = make(self, seqs, starts, texts, *rest)
        positions, at = batch.positions.copy(), 0
        for seq, start, text in zip(seqs, starts, texts, strict=True):
            if start >= seq.num_prompt_tokens:
                positions[at] += seq.request.num_cached_tokens > 0
            at += len(text)
        return batch._replace(positions=positions)

    Runner.batch = batch_shifted  # type: ignore[method-assign]
