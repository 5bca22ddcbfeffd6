"""What the tests of beam search share."""

from __future__ import annotations

import torch

from reference_engine.scheduling.sequence import SamplingParams
from tests.reference_engine.helpers import assert_idle, drain, ids

VOCAB, MAX_LEN, EOS = 61, 96, (2, 3)  # of the random Llama


def beams(max_tokens, width, **more):
    return SamplingParams(**{"max_tokens": max_tokens, "beam_width": width, "n": width, **more})


def prompt_of(length, seed):
    return tuple(torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def answers(engine, request):
    """Tokens of each choice, by rank."""
    made = drain(engine)[request.id]
    assert sorted(made) == list(range(request.params.n))
    assert_idle(engine)
    return [ids(made[rank]) for rank in range(request.params.n)]
