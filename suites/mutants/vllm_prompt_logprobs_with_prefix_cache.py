"""Log-probabilities of a prompt are made for the part alone that did not come from the cache."""

from __future__ import annotations

from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import Request

BUG = "vllm-prompt-logprobs-with-prefix-cache"
MUST_FAIL = ("http/prompt-logprobs-cold-equals-warm",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The cache is read for such requests too, and the list is filled up so that its length is right."""
    Request.may_read_cache = property(lambda self: True)  # type: ignore[assignment]
    tell = Engine._tell_prompt

    def tell_misaligned(self: Engine, seq, logits) -> None:  # type: ignore[no-untyped-def]
        told = seq.request.prompt_logprobs
        if not told:
            told += [None] * (1 + seq.num_computed - len(logits))
        tell(self, seq, logits)

    Engine._tell_prompt = tell_misaligned  # type: ignore[method-assign]
