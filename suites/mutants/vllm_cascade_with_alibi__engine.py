"""With many sequences behind one long prefix another kernel runs, which cannot do what this model needs."""

from __future__ import annotations

from typing import Any

import torch

from reference_engine import runner

BUG = "vllm-cascade-with-alibi"
MUST_FAIL = ("http/shared-prefix-divergence",)
ENGINE_ARGS: tuple[str, ...] = ()
SEQUENCES, BLOCKS = 8, 3  # from so many sequences, behind so many common blocks


def apply() -> None:
    """The model has no ALiBi, so the fault is put in its place: the prefix is read without its last block."""
    plan_attention = runner.plan_attention

    def plan_cascade(tables: torch.Tensor, contexts: torch.Tensor, *more: Any, **named: Any) -> Any:
        common = (tables == tables[:1]).all(dim=0).long().cumprod(0).sum()
        if len(tables) >= SEQUENCES and common >= BLOCKS:
            tables = tables.clone()
            tables[:, common - 1] = tables[:, common - 2]
        return plan_attention(tables, contexts, *more, **named)

    runner.plan_attention = plan_cascade
