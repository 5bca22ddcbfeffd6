"""A sequence without new tokens reaches the model: here by an empty prompt, which nobody refuses."""

from __future__ import annotations

from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import Request, SamplingParams

BUG = "vllm-empty-token-chunk"
MUST_FAIL = ("http/empty-prompt-then-healthy",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Queue a request whatever its length."""
    prepare = Engine.prepare

    def trusting(
        self: Engine, prompt: tuple[int, ...], params: SamplingParams, *, arrival_s: float | None = None
    ) -> Request:
        request = prepare(self, prompt or (0,), params, arrival_s=arrival_s)
        request.prompt = prompt
        return request

    Engine.prepare = trusting  # type: ignore[method-assign]
