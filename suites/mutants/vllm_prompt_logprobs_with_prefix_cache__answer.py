"""All log-probabilities of an answer are one number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reference_engine.sampling.sampler import Sampler

BUG = "vllm-prompt-logprobs-with-prefix-cache"
MUST_FAIL = ("http/cold-equals-warm",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Such as a fork's branches may have."""
    logprobs = Sampler.logprobs

    def constant(self: Sampler, *args: Any, **options: Any) -> list[Any]:
        return [told and replace(told, chosen=-0.5) for told in logprobs(self, *args, **options)]

    Sampler.logprobs = constant  # type: ignore[method-assign]
