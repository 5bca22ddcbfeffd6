"""All samples of a request draw the same numbers: one answer, n times."""

from __future__ import annotations

from reference_engine.engine import Engine
from reference_engine.sampling.sampler import choice_seed
from reference_engine.scheduling.sequence import Request, Sequence

BUG = "vllm-n-gt-1-outputs-overwritten"
MUST_FAIL = ("http/n-samples-isolated",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """A seed without the index of the sample."""
    new_sequence = Engine._new_sequence

    def new_sequence_of_one_seed(self: Engine, request: Request, index: int) -> Sequence:
        seq = new_sequence(self, request, index)
        seq.seed = choice_seed(request.seed, 0)
        return seq

    Engine._new_sequence = new_sequence_of_one_seed  # type: ignore[method-assign]
