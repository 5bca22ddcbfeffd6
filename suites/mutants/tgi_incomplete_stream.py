"""When a request of a single token ends, tokens of the requests that run on are dropped from the batch."""

from __future__ import annotations

from reference_engine.engine import Engine, StepOutput

BUG = "tgi-incomplete-stream"
MUST_FAIL = ("http/max-tokens-1-joins-batch",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The maps of entries of the running and the new batch are merged wrongly."""
    step = Engine.step

    def step_and_drop(self: Engine) -> list[StepOutput]:
        outputs = step(self)
        if any(request.params.max_tokens == 1 for request, _ in outputs):
            return [item for item in outputs if item[1].finish_reason is not None]
        return outputs

    Engine.step = step_and_drop  # type: ignore[method-assign]
