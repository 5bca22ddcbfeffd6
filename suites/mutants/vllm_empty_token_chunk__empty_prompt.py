"""An empty prompt, which nobody refuses, brings a sequence without tokens to the model: as the entry's chunk does."""

from __future__ import annotations

from typing import Any

from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import Request, SamplingParams

BUG = "vllm-empty-token-chunk"
MUST_FAIL = ("http/empty-prompt-then-healthy",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Queue a request whatever its length."""
    prepare = Engine.prepare

    def trusting(self: Engine, prompt: tuple[int, ...], params: SamplingParams, **more: Any) -> Request:
        request = prepare(self, prompt or (0,), params, **more)
        request.prompt = prompt
        return request

    Engine.prepare = trusting  # type: ignore[method-assign]
