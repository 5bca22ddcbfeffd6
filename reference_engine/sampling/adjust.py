"""What a request may change in its logits before a token is chosen."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch

from reference_engine.sampling.steering import Steering
from reference_engine.scheduling.sequence import Request, SamplingParams, Sequence


def adjust(row: torch.Tensor, seq: Sequence, drafts: list[int], eos_token_ids: frozenset[int]) -> None:
    """Apply to `row` [vocab_size], in place, what the request of `seq` asks for. Token ids beyond the row are nothing.

    drafts: the draft tokens between the sequence's last one and this row.
    """
    params = seq.request.params
    may_end = seq.num_output_tokens + len(drafts) >= params.min_tokens
    _steering(seq.request, row, eos_token_ids).apply(row, may_end=may_end)
    if params.penalises:
        _penalise(row, seq.tokens + drafts, seq.num_prompt_tokens, params)


def _steering(request: Request, row: torch.Tensor, eos_token_ids: frozenset[int]) -> Steering:
    if request.steering is None:
        params = request.params
        ends = params.stop_token_ids | (frozenset() if params.ignore_eos else eos_token_ids)
        request.steering = Steering.of(params.allowed_token_ids, params.logit_bias, ends, row)
    return request.steering


def _penalise(row: torch.Tensor, tokens: SequenceOf[int], num_prompt_tokens: int, params: SamplingParams) -> None:
    """Repetition looks at prompt and output, presence and frequency at the output alone."""
    seen = torch.tensor(tokens, device=row.device)
    if params.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(tokens)), device=row.device)
        logits = row[ids]
        row[ids] = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
    counts = torch.bincount(seen[num_prompt_tokens:], minlength=len(row))
    row -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
