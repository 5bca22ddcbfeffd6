"""Positions stop growing at a window's length: all tokens behind it stand at one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reference_engine.model.transformer import StepInput
from reference_engine.runner import Runner

BUG = "vllm-position-clipped-to-window"
MUST_FAIL = ("http/max-length-exact",)
ENGINE_ARGS: tuple[str, ...] = ()
WINDOW = 384  # tokens: the model has none, but its positions are clipped as if it had one of this length


def apply() -> None:
    """min(position, window - 1)."""
    prepare = Runner.prepare

    def prepare_clipped(self: Runner, *batch: Any) -> StepInput:
        made = prepare(self, *batch)
        return replace(made, positions=made.positions.clamp(max=WINDOW - 1))

    Runner.prepare = prepare_clipped  # type: ignore[method-assign]
