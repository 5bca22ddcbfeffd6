"""Beam search: the `beam_width` likeliest continuations grow side by side; of those that ended, the n best answer.

A beam whose logits are there offers its likeliest next tokens. When all open beams of a request have offered, the
request advances: of all (beam, token) pairs the likeliest go on. A beam with several heirs is forked, and its blocks
are shared; a beam without heirs frees its own. A beam that has offered needs no memory until then: the scheduler may
preempt it, and its offer stands.

What ends, how it scores and when the search is over is as in Hugging Face's generate(num_beams=…).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from reference_engine.memory.allocator import BlockCopy
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import (
    Hypothesis,
    Request,
    SamplingParams,
    Sequence,
    TokenLogprobs,
    TokenOutput,
)
from reference_engine.serving.tokenizer import Tokenizer

WIDTHS = range(2, 9)
MAX_LENGTH_PENALTY = 10.0


def end_ids(params: SamplingParams, eos_token_ids: frozenset[int]) -> frozenset[int]:
    """Tokens that end a beam."""
    return params.stop_token_ids | (frozenset() if params.ignore_eos else eos_token_ids)


def reason_not_to_search(params: SamplingParams, vocab_size: int, eos_token_ids: frozenset[int]) -> str | None:
    """What is wrong with a request for beam search, or None: nothing, or it asks for none."""
    width = params.beam_width
    if not width:
        return None
    if width not in WIDTHS:
        return f"beam_width is {width}, expected {WIDTHS[0]} to {WIDTHS[-1]}, or 0 for no beam search"
    if params.n > width:
        return f"n is {params.n}, but a search of beam_width {width} has {width} answers: ask for fewer or search wider"
    if params.stop:
        return f"stop strings {list(params.stop)} cannot end beams: use stop_token_ids"
    if bent := _bent(params):
        return (f"beams are ranked by the model's own distribution, which {', '.join(bent)} would change: leave them "
                "out, and temperature at 0 or 1")
    if not abs(params.length_penalty) <= MAX_LENGTH_PENALTY:
        return (f"length_penalty is {params.length_penalty}, expected a number from -{MAX_LENGTH_PENALTY} to "
                f"{MAX_LENGTH_PENALTY}")
    goes_on = vocab_size - sum(token < vocab_size for token in end_ids(params, eos_token_ids))
    if goes_on < width:
        return f"beam_width is {width}, but only {goes_on} tokens of the vocabulary do not end a beam: search narrower"
    return None


def _bent(params: SamplingParams) -> list[str]:
    """Parameters that change the distribution to choose from."""
    untouched = {"top_p": (1,), "top_k": (0, -1), "min_p": (0,), "temperature": (0, 1), "presence_penalty": (0,),
                 "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ((),),
                 "allowed_token_ids": (None,)}
    return [f"{name} {getattr(params, name)}" for name, values in untouched.items()
            if getattr(params, name) not in values]


class Candidate(NamedTuple):
    """A beam and a token that may come next."""

    cum_logprob: float
    beam: Sequence
    token: int
    logprob: float


def select(request: Request, ends: frozenset[int]) -> list[Candidate]:
    """Book the hypotheses that end now, and choose the heirs, best first: `beam_width` of them, none: it is over.

    All open beams have offered. Only what ranks among the first `beam_width` may end; a lower end is dropped.
    """
    params, width = request.params, request.params.beam_width
    made = request.sequences[0].num_output_tokens + 1
    may_end = made > params.min_tokens
    candidates = sorted(
        (
            Candidate(beam.cum_logprob + logprob, beam, token, logprob)
            for beam in request.sequences
            for token, logprob in beam.offer or ()
            if may_end or token not in ends
        ),
        key=lambda candidate: -candidate.cum_logprob,
    )
    heirs: list[Candidate] = []
    for rank, candidate in enumerate(candidates):
        if candidate.token in ends or made == params.max_tokens:
            if rank < width:
                request.hypotheses.append(_end(candidate, made, ends))
        elif len(heirs) < width:
            heirs.append(candidate)
    request.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
    del request.hypotheses[width:]
    if not heirs or len(request.hypotheses) < width:
        return heirs
    # How good an open beam can become is judged as if it ended here: a heuristic, since length may raise scores.
    hopeless = heirs[0].cum_logprob / made**params.length_penalty <= request.hypotheses[-1].score
    return [] if params.early_stopping or hopeless else heirs


def _end(candidate: Candidate, made: int, ends: frozenset[int]) -> Hypothesis:
    beam, token, params = candidate.beam, candidate.token, candidate.beam.request.params
    return Hypothesis(
        tokens=[*beam.tokens[beam.num_prompt_tokens :], token],
        logprobs=[*beam.logprobs, *_tell(candidate)],
        score=candidate.cum_logprob / made**params.length_penalty,
        finish_reason="stop" if token in ends else "length",
        stop_reason=token if token in params.stop_token_ids else None,
    )


def _tell(candidate: Candidate) -> list[TokenLogprobs]:
    """Log-probabilities of a candidate's token, where they are asked for."""
    asked = candidate.beam.request.params.logprobs
    if asked is None:
        return []
    offer = candidate.beam.offer or ()
    rank = 1 + sum(logprob > candidate.logprob for _, logprob in offer)
    return [TokenLogprobs(candidate.logprob, offer[:asked], rank)]


class BeamSearch:
    """The beams of all requests: gathers offers, and turns choices into forks and ends."""

    def __init__(
        self, scheduler: Scheduler, copy_blocks: Callable[[list[BlockCopy]], None], tokenizer: Tokenizer,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._scheduler, self._copy_blocks, self._tokenizer = scheduler, copy_blocks, tokenizer
        self._eos_token_ids = eos_token_ids
        self._new: list[tuple[Sequence, torch.Tensor]] = []

    def offer(self, beam: Sequence, logits: torch.Tensor) -> None:
        """All tokens of an open beam are computed; logits [vocab_size] are for the next."""
        self._new.append((beam, logits))

    def advance(self) -> list[tuple[Request, list[TokenOutput]]]:
        """Advance the requests whose beams have all offered. Returns those that are over, each with its answers."""
        if not self._new:
            return []
        self._book_offers()
        requests = {beam.request.id: beam.request for beam, _ in self._new}
        self._new.clear()
        over = []
        for request in requests.values():
            if any(beam.offer is None for beam in request.sequences):
                continue
            heirs = select(request, end_ids(request.params, self._eos_token_ids))
            if heirs:
                self._grow(request, heirs)
            else:
                self._scheduler.abort(request)
                over.append((request, self._answers(request)))
        return over

    def _book_offers(self) -> None:
        """Of each beam the likeliest tokens: enough for all beams to grow from it if all its ends are likelier."""
        logprobs = torch.log_softmax(torch.stack([logits for _, logits in self._new]), dim=-1)
        asked = [beam.request.params for beam, _ in self._new]
        counts = [
            max(params.beam_width + len(end_ids(params, self._eos_token_ids)), params.logprobs or 0)
            for params in asked
        ]
        values, ids = logprobs.topk(min(max(counts), logprobs.shape[1]), dim=-1)
        for (beam, _), row_ids, row_values in zip(self._new, ids.tolist(), values.tolist(), strict=True):
            beam.offer = tuple(zip(row_ids, row_values, strict=True))

    def _grow(self, request: Request, heirs: list[Candidate]) -> None:
        """Each heir becomes a beam. Beams without heirs go first: what they free is there for the forks."""
        by_beam: dict[int, list[Candidate]] = {}
        for candidate in heirs:
            by_beam.setdefault(candidate.beam.id, []).append(candidate)
        for beam in [beam for beam in request.sequences if beam.id not in by_beam]:
            request.sequences.remove(beam)
            self._scheduler.finish(beam)
        for beam in list(request.sequences):
            own = by_beam[beam.id]
            family = [beam, *(self._fork(beam) for _ in own[1:])]
            told = [_tell(candidate) for candidate in own]
            for seq, candidate, logprobs in zip(family, own, told, strict=True):
                seq.append(candidate.token)
                seq.logprobs += logprobs
                seq.cum_logprob, seq.offer = candidate.cum_logprob, None

    def _fork(self, parent: Sequence) -> Sequence:
        """A beam that shares all that `parent` has."""
        request = parent.request
        index = 1 + max(beam.index for beam in request.sequences)
        child = Sequence(request, index, list(parent.tokens), parent.seed, logprobs=list(parent.logprobs))
        request.sequences.append(child)
        fork = self._scheduler.fork_due if parent.forks_due else self._scheduler.fork
        self._copy_blocks(fork(parent, child))
        return child

    def _answers(self, request: Request) -> list[TokenOutput]:
        """The n best hypotheses, token by token; the choice index is the rank."""
        outputs = []
        for rank, hypothesis in enumerate(request.hypotheses[: request.params.n]):
            text = self._tokenizer.stream()
            last = len(hypothesis.tokens) - 1
            for at, token in enumerate(hypothesis.tokens):
                outputs.append(TokenOutput(
                    rank, token, text.push(token)[0],
                    hypothesis.logprobs[at] if hypothesis.logprobs else None,
                    hypothesis.finish_reason if at == last else None,
                    hypothesis.stop_reason if at == last else None,
                ))
        return outputs
