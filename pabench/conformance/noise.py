"""What cold runs of one prompt, alone in the engine, differ by: the measure of every self-consistency check.

Other batch shapes and kernels change low bits, and greedy text flips where two tokens are nearly alike. So a prompt
is asked alone, then again, then from places inside its own answer, where what was decoded one by one is prefilled at
once: the same sums in other shapes. The largest change is the noise. A model that another beginning of the prompt
does not move by more than that cannot show what it reads, and an engine that differs by more than half a nat from
itself cannot be held against itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pabench.conformance.tokens import Prompt, Token, agreement, continued
from pabench.probe import FIRST_RING, FIRST_SALT, SEP

if TYPE_CHECKING:
    from pabench.conformance.comparison import Asker
    from pabench.conformance.selfcheck import SelfCheck

_PROMPTS = 4
_TOKENS = 24
_CUTS = (5, 12, 19)       # outputs that a run begins behind, instead of behind the prompt
_SAFETY = 5.0             # tolerance a noise: thousands of tokens are compared later, some hundred here
# Of a tolerance. Rounding flips of a quantised cache are rare and large: seen, 0.002 nats where the noise was 1e-5.
_SMALLEST_NATS = 0.05
_LARGEST_NATS = 0.5       # of a noise that can be told from a fault
_SAMPLED_AT = 0.5         # temperature


@dataclass(frozen=True, slots=True)
class Noise:
    """What was found. `problem` says why nothing can be told by self-consistency, `fault` what is wrong with the
    engine whatever else it does; "" where there is none.

    `nats` is None where the engine gives no log-probabilities; then `departed` of `words` departed in cold runs.
    """

    nats: float | None = None
    departed: int = 0
    words: int = 0
    joiner: str = ""              # between a prompt of text and the beginning of its answer
    samples_tell: bool = False    # whether log-probabilities of sampled tokens are those of the model
    samples_vary: bool = False    # without log-probabilities: whether samples show what else might have been said
    problem: str = ""
    fault: str = ""

    @property
    def tolerance(self) -> float:
        """Nats that a log-probability, or the lead of one token over another, may change by."""
        return max(_SAFETY * (self.nats or 0.0), _SMALLEST_NATS)

    @property
    def text(self) -> str:
        """In a few words, for a verdict."""
        if self.nats is None:
            return f"by words alone ({self.departed} of {self.words} departed in cold runs)"
        return f"noise {self.nats:.2g} nats"


def measure_noise(check: SelfCheck, asker: Asker, seed: int) -> Noise:
    """Ask the engine about 30 short questions, one at a time. Raises EngineError where it does not answer."""
    rng = np.random.default_rng(seed)
    # One token more than two blocks and a half: the beginning that is changed below is a block of its own.
    length = min(2 * asker.edge + asker.edge // 2 + 1, asker.longest // 2)
    count = min(_TOKENS, asker.longest - length - 2)
    drawn = [_draw(rng, length) for _ in range(_PROMPTS)]
    prompts = [check.phrase(ids) for ids in drawn]
    answers = [check.cold(asker, prompt, count, "noise") for prompt in prompts]
    if not all(answers):
        return Noise(problem="a prompt alone in the engine is answered with nothing")
    if len({tuple(token.key for token in answer) for answer in answers}) == 1:
        return Noise(problem=f"{_PROMPTS} different prompts have one and the same answer: the model cannot show what "
                             "it reads")
    if check.without_logprobs:
        return _by_words(check, asker, prompts, answers)
    again = _largest(_changes(check, asker, *run, cut=0) for run in zip(prompts, answers, strict=True))
    if not again <= _LARGEST_NATS:
        return Noise(again, fault=f"one prompt, twice alone in the engine and cold, is answered with log-probabilities "
                                  f"{again:.3g} nats apart")
    behind = _largest(_changes(check, asker, *run, cut=cut) for run in zip(prompts, answers, strict=True)
                      for cut in _CUTS)
    noise = Noise(max(again, behind))
    if not behind <= _LARGEST_NATS:
        return Noise(behind, problem=f"an answer and its own end, asked for behind its beginning, differ by "
                                     f"{behind:.2g} nats, alone in the engine and cold")
    others = [check.phrase(_other_beginning(rng, ids, asker.edge)) for ids in drawn]
    if not _moves(check, asker, others, answers, noise.tolerance):
        return Noise(noise.nats, problem=f"another beginning of a prompt changes its answer by less than "
                                         f"{noise.tolerance:.2g} nats: the model cannot show what it reads")
    return Noise(noise.nats, samples_tell=_samples_tell(check, asker, prompts[0], count, noise.tolerance))


def _draw(rng: np.random.Generator, length: int) -> tuple[int, ...]:
    return (SEP, *(int(token) for token in rng.integers(FIRST_RING, 2**15, length - 1)))


def _other_beginning(rng: np.random.Generator, ids: tuple[int, ...], block: int) -> tuple[int, ...]:
    """`ids` with other tokens in the first block, or in the first half where there is but one."""
    size = min(block, len(ids) // 2)
    return (SEP, *(int(token) for token in rng.integers(FIRST_SALT, 2**15, size - 1)), *ids[size:])


def _changes(check: SelfCheck, asker: Asker, prompt: Prompt, answer: list[Token], cut: int) -> Iterator[float]:
    """By how much the log-probability and the lead of each token change when it is asked for behind `cut` tokens.

    As long as the tokens stay the same. Another token has overcome the lead of the first.
    """
    if cut >= len(answer) - 1:
        return
    again = check.cold(asker, continued(prompt, answer[:cut]), len(answer) - cut, "noise")
    for one, other in zip(answer[cut:], again, strict=False):
        if one.logprob is not None and other.logprob is not None:
            yield abs(one.logprob - other.logprob)
        if one.lead is not None and other.lead is not None:
            yield abs(one.lead - other.lead) if one.key == other.key else one.lead
        if one.key != other.key:
            return


def _largest(runs: Iterable[Iterable[float]]) -> float:
    """The largest of all changes. NaN counts as infinite: no comparison would find it."""
    return max((math.inf if math.isnan(change) else change for run in runs for change in run), default=0.0)


def _moves(
    check: SelfCheck, asker: Asker, prompts: Sequence[Prompt], answers: Sequence[list[Token]], tolerance: float
) -> bool:
    """Whether most answers are moved by another beginning of their prompt."""
    moved = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        other = check.cold(asker, prompt, min(4, len(answer)), "other beginning")
        pairs = list(zip(answer, other, strict=False))
        moved += any(a.key != b.key or abs((a.logprob or 0) - (b.logprob or 0)) > tolerance for a, b in pairs)
    return 2 * moved > len(prompts)


def _samples_tell(check: SelfCheck, asker: Asker, prompt: Prompt, count: int, tolerance: float) -> bool:
    """Whether a sampled token is given the log-probability that the model has for it as part of a prompt."""
    if not check.scores:
        return False
    sample = check.cold(asker, prompt, count, "sample", temperature=_SAMPLED_AT)
    scores = check.score(asker, prompt, sample)
    pairs = [(token.logprob, score) for token, score in zip(sample, scores, strict=False)]
    return bool(pairs) and all(
        told is not None and score is not None and abs(told - score) <= tolerance for told, score in pairs)


def _by_words(check: SelfCheck, asker: Asker, prompts: Sequence[Prompt], answers: Sequence[list[Token]]) -> Noise:
    """Without ids and log-probabilities: do answers go on alike behind their own beginning, and how is it joined?"""
    best: tuple[int, int, str] | None = None
    for joiner in ("", " "):
        departed = words = 0
        for prompt, answer in zip(prompts, answers, strict=True):
            for cut in (cut for cut in _CUTS if cut < len(answer) - 1):
                again = check.cold(asker, continued(prompt, answer[:cut], joiner), len(answer) - cut, "noise")
                same = [same for _, _, same in agreement(answer[cut:], again)]
                departed += not all(same)
                words += sum(same)
        if best is None or departed < best[0]:
            best = departed, words, joiner
    assert best is not None
    departed, words, joiner = best
    runs = sum(cut < len(answer) - 1 for answer in answers for cut in _CUTS)
    vary = _samples_vary(check, asker, prompts[0], len(answers[0]))
    if runs == 0 or departed > (runs // 2 if vary else 0):
        return Noise(None, departed, words, joiner, problem=(
            f"{departed} of {runs} answers do not go on alike when asked for behind their own beginning: without "
            f"token ids and log-probabilities{'' if vary else ', or samples,'} a near tie cannot be told from a fault"))
    if not any(a != b for a, b in pairwise([token.key for token in answer] for answer in answers)):
        return Noise(None, problem="different prompts have one and the same answer")
    return Noise(None, departed, words, joiner, samples_vary=vary)


def _samples_vary(check: SelfCheck, asker: Asker, prompt: Prompt, count: int) -> bool:
    """Whether two seeds say different things."""
    if not check.samples:
        return False
    one, other = (check.cold(asker, prompt, count, "sample", temperature=1.0, seed=seed) for seed in (0, 1))
    return [token.key for token in one] != [token.key for token in other]
