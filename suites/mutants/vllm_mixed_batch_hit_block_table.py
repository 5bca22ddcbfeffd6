"""When one prompt of a step has a prefix hit, the block tables of those without one stay empty."""

from __future__ import annotations

from typing import Any

import torch

from reference_engine import runner

BUG = "vllm-mixed-batch-hit-block-table"
MUST_FAIL = ("http/cold-equals-warm",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """All prompts go the way of those that hit, with zeros for a table."""
    plan_attention = runner.plan_attention

    def plan_of_hits(
        tables: torch.Tensor, contexts: torch.Tensor, starts: torch.Tensor, *more: Any, **named: Any
    ) -> Any:
        new = starts.diff()
        is_prompt, is_hit = new > 1, (new > 1) & (contexts > new)
        if is_hit.any():
            tables = tables.masked_fill((is_prompt & ~is_hit)[:, None], 0)
        return plan_attention(tables, contexts, starts, *more, **named)

    runner.plan_attention = plan_of_hits
