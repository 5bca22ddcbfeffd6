"""The meaningless token that a chunk of a prompt ends with is written into the prompt, over the token that follows."""

from __future__ import annotations

from reference_engine.engine import Engine, StepOutput

BUG = "minisgl-chunk-token-write-race"
MUST_FAIL = ("http/chunk-boundary-exact",)
ENGINE_ARGS = ("--max-num-batched-tokens", "64")


def apply() -> None:
    """Sampled behind every chunk, not behind the last alone."""
    step = Engine.step

    def step_and_write(self: Engine) -> list[StepOutput]:
        outputs = step(self)
        for seq in self.scheduler.running:
            if 0 < seq.num_computed < seq.num_prompt_tokens - 1:
                seq.tokens[seq.num_computed] = seq.tokens[seq.num_computed - 1]
        return outputs

    Engine.step = step_and_write  # type: ignore[method-assign]
