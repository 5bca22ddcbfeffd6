"""Of the outputs of several samples in one step, the collector keeps the last: tokens of the others are lost."""

from __future__ import annotations

from reference_engine.engine import Engine, StepOutput

BUG = "vllm-n-gt-1-outputs-overwritten"
MUST_FAIL = ("http/n-samples-isolated", "http/stream-equals-whole")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Replace an output without looking at its index."""
    step = Engine.step

    def step_and_overwrite(self: Engine) -> list[StepOutput]:
        outputs = step(self)
        last = {item[0].id: item for item in outputs}
        return [item for item in outputs if item is last[item[0].id] or item[1].finish_reason is not None]

    Engine.step = step_and_overwrite  # type: ignore[method-assign]
