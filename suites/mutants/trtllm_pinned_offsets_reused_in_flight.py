"""The buffer of block tables is filled for the next step while this one still reads it: rows are of two steps."""

from __future__ import annotations

from typing import Any

import torch

from reference_engine import runner

BUG = "trtllm-pinned-offsets-reused-in-flight"
MUST_FAIL = ("http/concurrent-isolation",)
ENGINE_ARGS: tuple[str, ...] = ()

_before: list[torch.Tensor] = []


def apply() -> None:
    """When the batch has changed, its last row is still that of the step before."""
    plan_attention = runner.plan_attention

    def plan_of_two_steps(tables: torch.Tensor, contexts: torch.Tensor, *more: Any, **named: Any) -> Any:
        old = _before[0] if _before else tables
        _before[:] = [tables]
        if len(old) != len(tables):
            tables, row = tables.clone(), min(len(old), len(tables)) - 1
            width = min(old.shape[1], tables.shape[1])
            tables[row, :width] = old[row, :width]
        return plan_attention(tables, contexts, *more, **named)

    runner.plan_attention = plan_of_two_steps
