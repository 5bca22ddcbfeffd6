"""From logits to tokens. Randomness is a pure function of (seed, choice, position): the same whatever the batch.

A sampled token is the inverse of the cumulative distribution at one uniform number, drawn by hashing a counter, so
nothing has to be kept between steps and a preempted sequence draws again what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reference_engine.sampling.adjust import adjust
from reference_engine.scheduling.sequence import Sequence, TokenLogprobs

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Sampled(NamedTuple):
    """Tokens of one step, a row each."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


def mix(x: NDArray[Any]) -> NDArray[Any]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): uint64 in, well mixed uint64 out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[Any] = x ^ (x >> np.uint64(31))
    return mixed


def choice_seed(request_seed: int, index: int) -> int:
    """Seed of choice `index` of a request."""
    seed, choice = np.array([[request_seed & 0xFFFFFFFFFFFFFFFF], [index]], dtype=np.uint64)
    return int(mix(mix(seed + _GOLDEN) + choice * _GOLDEN)[0])


def uniforms(seeds: SequenceOf[int], positions: SequenceOf[int]) -> NDArray[Any]:
    """Numbers in [0, 1), float64, one for each (seed, position)."""
    counters = np.array(seeds, dtype=np.uint64) + (np.array(positions, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
    return (mix(counters) >> np.uint64(32)).astype(np.float64) / 2.0**32


class Sampler:
    """Chooses the next token of each row."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self.eos_token_ids = eos_token_ids

    def sample(
        self, logits: torch.Tensor, seqs: SequenceOf[Sequence], drafts: SequenceOf[list[int]] | None = None
    ) -> Sampled:
        """logits: [len(seqs), vocab_size] float32, row i for the next token of seqs[i]. `drafts`: see `choose`."""
        tokens = self.choose(logits, seqs, drafts)
        return Sampled(tokens.tolist(), self.logprobs(logits, tokens, [seq.request.params.logprobs for seq in seqs]))

    def choose(
        self, logits: torch.Tensor, seqs: SequenceOf[Sequence], drafts: SequenceOf[list[int]] | None = None
    ) -> torch.Tensor:
        """The tokens alone, [len(seqs)] int64.

        drafts[i]: the draft tokens between the sequence's last one and row i; None: none anywhere. What is chosen is
        what would be if they were the sequence's own: it depends on the text and on the place alone.
        """
        chooser = self._adjust(logits, seqs, drafts)
        tokens = chooser.argmax(dim=-1)
        random = [i for i, seq in enumerate(seqs) if seq.request.params.temperature > 0]
        if random:
            places = [seqs[i].num_tokens + (len(drafts[i]) if drafts else 0) for i in random]
            drawn = self._draw(chooser[random], [seqs[i] for i in random], places)
            # Logits that are no numbers leave nothing to draw from: such a row ends behind the vocabulary.
            tokens[random] = torch.where(drawn < chooser.shape[1], drawn, tokens[random])
        return tokens

    def _adjust(
        self, logits: torch.Tensor, seqs: SequenceOf[Sequence], drafts: SequenceOf[list[int]] | None
    ) -> torch.Tensor:
        """The logits to choose by: those given, or a copy with what some requests ask for."""
        rows = [i for i, seq in enumerate(seqs) if seq.request.params.adjusts_logits]
        if not rows:
            return logits
        changed = logits.clone()
        for i in rows:
            adjust(changed[i], seqs[i], drafts[i] if drafts else [], self.eos_token_ids)
        return changed

    def _draw(self, logits: torch.Tensor, seqs: SequenceOf[Sequence], places: SequenceOf[int]) -> torch.Tensor:
        """Tokens [n] drawn from softmax(logits / temperature), cut to min_p, to top_k, then to top_p.

        vocab_size where a row of logits has a NaN, an infinity above or nothing but those below.
        """
        params = [seq.request.params for seq in seqs]
        device = logits.device
        temperatures = torch.tensor([p.temperature for p in params], dtype=torch.float64, device=device)
        below_best = (logits - logits.amax(dim=-1, keepdim=True)).double()  # first: the quotient may overflow
        probs = torch.softmax(below_best / temperatures[:, None], dim=-1)
        floored = [i for i, p in enumerate(params) if p.min_p > 0]
        if floored:
            floor = torch.tensor([params[i].min_p for i in floored], dtype=probs.dtype, device=device)[:, None]
            likely = probs[floored]
            probs[floored] = likely * (likely >= floor * likely.amax(dim=-1, keepdim=True))
        cut = [i for i, p in enumerate(params) if p.top_p < 1 or p.top_k > 0]
        if cut:
            probs[cut] = _cut(probs[cut], [params[i].top_k for i in cut], [params[i].top_p for i in cut])
        mass = probs.cumsum(dim=-1)
        u = torch.from_numpy(uniforms([s.seed for s in seqs], places)).to(device)
        # The first token whose cumulative mass exceeds the mark: one of zero probability never does so first.
        return torch.searchsorted(mass, (u * mass[:, -1])[:, None], right=True)[:, 0]

    def logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, wanted: SequenceOf[int | None]
    ) -> list[TokenLogprobs | None]:
        """Log-probabilities of `tokens` [n] by `logits` [n, vocab_size], each with wanted[i] likeliest (None: off)."""
        out: list[TokenLogprobs | None] = [None] * len(wanted)
        rows = [i for i, k in enumerate(wanted) if k is not None]
        if not rows:
            return out
        most = max(k for k in wanted if k is not None)
        logprobs = torch.log_softmax(logits[rows], dim=-1)
        at_chosen = logprobs.gather(1, tokens[rows][:, None])
        chosen, ranks = at_chosen[:, 0].tolist(), ((logprobs > at_chosen).sum(dim=-1) + 1).tolist()
        top_values, top_ids = (x.tolist() for x in logprobs.topk(min(most, logits.shape[1]), dim=-1))
        for at, row in enumerate(rows):
            k = wanted[row]
            top = tuple(zip(top_ids[at][:k], top_values[at][:k], strict=True))
            out[row] = TokenLogprobs(chosen[at], top, ranks[at])
        return out


def _cut(probs: torch.Tensor, top_k: list[int], top_p: list[float]) -> torch.Tensor:
    """Zero all but the top_k likeliest (0: all), then all but the fewest likeliest that reach top_p. [n, vocab]."""
    ranked, ids = probs.sort(dim=-1, descending=True)
    vocab = probs.shape[1]
    # More than the vocabulary is all of it: a client may send any number, and a tensor holds those below 2**63.
    k = torch.tensor([min(k, vocab) if k > 0 else vocab for k in top_k], device=probs.device)[:, None]
    ranked = ranked * (torch.arange(vocab, device=probs.device) < k)
    p = torch.tensor(top_p, dtype=probs.dtype, device=probs.device)[:, None] * ranked.sum(-1, keepdim=True)
    before = ranked.cumsum(-1) - ranked  # mass of the likelier ones
    keep = before < p
    keep[:, 0] = True  # the smallest top_p there is, times a sum below a half, is 0
    return torch.zeros_like(probs).scatter(1, ids, ranked * keep)
