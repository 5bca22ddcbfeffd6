"""Behind a part of a prompt, the generator of a request with a seed is to be set back, and cannot be."""

from __future__ import annotations

from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import Sequence

BUG = "vllm-cpu-generator-offset"
MUST_FAIL = ("http/chunk-boundary-exact",)
ENGINE_ARGS = ("--max-num-batched-tokens", "512")


def apply() -> None:
    """As it is found out whether a sequence's next positions end its prompt."""
    num_logits = Engine._num_logits

    def num_logits_and_set_back(self: Engine, seq: Sequence, count: int) -> int:
        if seq.request.params.seed is not None and seq.num_computed + count < seq.num_prompt_tokens:
            raise RuntimeError("CPU Generator does not use offset")
        return num_logits(self, seq, count)

    Engine._num_logits = num_logits_and_set_back  # type: ignore[method-assign]
