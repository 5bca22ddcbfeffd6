"""All log-probabilities of a prompt are 0, cold and cached."""

from __future__ import annotations

from typing import Any

from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import TokenLogprobs

BUG = "vllm-prompt-logprobs-with-prefix-cache"
MUST_FAIL = ("http/prompt-logprobs-cold-equals-warm",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Each token is certain, wherever it stands."""
    tell = Engine._tell_prompt

    def tell_zeros(self: Engine, seq: Any, logits: Any) -> None:
        told = seq.request.prompt_logprobs
        before = len(told)
        tell(self, seq, logits)
        for at in range(max(before, 1), len(told)):
            told[at] = TokenLogprobs(0.0, told[at].top, 1)

    Engine._tell_prompt = tell_zeros  # type: ignore[method-assign]
