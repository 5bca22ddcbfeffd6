"""Self-consistency: an engine that does not serve the KV probe is held against itself, alone and cold.

The reference for an answer is what the engine says to the same prompt when nothing else runs and nothing of the
prompt is cached. It is asked for in two pieces, the second behind the prompt and the first half of the answer, so that
what was decoded is held against a prefill of the same tokens too. Then, token by token:

    same token       its log-probability must be the same, within a tolerance made of the measured noise (`noise`)
    another token    is a fault where the reference's token leads by more than the tolerance. Where it does not, both
                     answers are right: the comparison goes on behind the token that came
    without log-probabilities
                     one token, and one more in 32, may depart if all that follows it is what the engine says alone
                     behind it, for 8 tokens or to the end, at least 4: a fault stays in the cache, a near tie does not
    an early end     where alone the answer goes on, is as another token: a fault where what follows leads; without
                     log-probabilities, where the answer was cut for its length and alone has more words at that length
    sampled          each token's log-probability must be the one that it has as part of a prompt

Cold is what has a cache salt of its own, or any request where there is no prefix cache. Where neither is so, the
reference is asked for before the requests that it is for, while its prompt is still new to the engine.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pabench.conformance.failure import Failure
from pabench.conformance.noise import Noise, measure_noise
from pabench.conformance.tokens import Prompt, Token, continued, tokens_of
from pabench.conformance.verify import Ask
from pabench.engines.base import Choice, Completion, EngineFacts, GenerationRequest
from pabench.engines.wording import plain
from pabench.errors import EngineProtocol

_WHOLE_PIECE = 8      # tokens of an answer that is not asked for in two pieces
_FOLLOWS = 8          # tokens that must follow a departure as they would alone
_FOLLOWS_AT_LEAST = 4  # where the answer ends before
_RARE = 32            # tokens to a further departure, without log-probabilities
_NAMED = 3            # tokens in a row that tell another request's answer from chance
_CUT_CHARACTER = "\ufffd"  # the beginning of one, at the end of a text: some engines leave it out of a stream


class Asker(Protocol):
    """How questions of one's own are put: one at a time, each recorded with its case."""

    facts: EngineFacts

    @property
    def edge(self) -> int:
        """Block size to choose lengths by."""
        ...

    @property
    def longest(self) -> int:
        """Longest sequence, prompt and output, that the engine can hold."""
        ...

    @property
    def time_for_references(self) -> bool:
        """Whether the case has time left for more of them."""
        ...

    def ask_alone(self, request: GenerationRequest, name: str) -> Completion:
        """The answer to one request, sent as it is."""
        ...


@dataclass(slots=True)
class Tally:
    """What was compared in one case."""

    answers: int = 0           # samples that were to be compared, empty ones too
    compared: int = 0
    total: int = 0
    ties: int = 0              # tokens that differed where two were nearly alike
    furthest_nats: float = 0.0  # by which a compared log-probability was another

    def near(self, logprob: float | None, expected: float | None, tolerance: float) -> bool:
        """Whether a log-probability is the expected one; no number is not."""
        if logprob is None or expected is None or not abs(logprob - expected) <= tolerance:
            return False
        self.furthest_nats = max(self.furthest_nats, abs(logprob - expected))
        return True


class SelfCheck:
    """The references of one run, and the noise between them, measured when the first is needed."""

    def __init__(self, facts: EngineFacts, seed: int) -> None:
        can = facts.capabilities
        self._facts = facts
        self._seed = seed
        self._salted = "cache_salt" in can
        self._noise: Noise | None = None
        self._references: dict[Prompt, tuple[int, list[Token]]] = {}  # how many tokens were asked for, and the answer
        self.without_logprobs = not {"token_ids", "logprobs"} <= can
        self.scores = {"token_ids", "logprobs", "prompt_logprobs", "sampling"} <= can
        # An engine that tells nothing of a prefix cache may have one.
        told = facts.kv is not None and facts.kv.prefix_caching is not None
        self.cold_at_any_time = self._salted or (told and "prefix_cache" not in can)

    def noise(self, asker: Asker) -> Noise:
        """The noise, measured once a run."""
        if self._noise is None:
            self._noise = measure_noise(self, asker, self._seed)
        return self._noise

    def phrase(self, ids: Sequence[int]) -> Prompt:
        """The probe's `ids` as this engine's model takes them."""
        return plain(ids, as_text="token_ids" not in self._facts.capabilities)

    def request(self, ask: Ask) -> GenerationRequest:
        """`ask` as it is sent to this engine."""
        return replace(ask.request, prompt=self.phrase(ask.prompt.prompt), logprobs=not self.without_logprobs)

    def text(self, tally: Tally) -> str:
        """What was done, for a verdict."""
        if self._noise is None or not tally.answers:
            return ""
        ties = f", {tally.ties} near ties" if tally.ties else ""
        furthest = "" if self.without_logprobs else f", at most {tally.furthest_nats:.2g} nats apart"
        return (f"self-consistency, {self._noise.text}, {tally.compared} of {tally.total} tokens "
                f"compared{furthest}{ties}")

    def prepare(self, asker: Asker, asks: Sequence[Ask]) -> None:
        """Ask for the references of `asks` now, where later they would not be cold."""
        if self.cold_at_any_time or self.noise(asker).problem or self.noise(asker).fault:
            return
        for ask in asks:
            if ask.temperature == 0 and asker.time_for_references:
                with contextlib.suppress(EngineProtocol):  # what is refused here is refused there, and judged there
                    self._reference(asker, self.request(ask).prompt, ask.tokens, ask.name)

    def check(
        self, asker: Asker, ask: Ask, choice: Choice, name: str, others: Sequence[tuple[str, Choice]], tally: Tally
    ) -> Failure | None:
        """What is wrong with one sample; None when nothing is. `others` are samples of other prompts, by name."""
        tokens = tokens_of(choice)
        tally.answers += 1
        tally.total += len(tokens)
        prompt = self.request(ask).prompt
        if ask.temperature > 0:
            return self._check_sample(asker, prompt, tokens, name, tally)
        comparison = _Comparison(self, asker, prompt, tokens, name, others, tally)
        failure = comparison.run()
        if failure is None and len(tokens) < ask.tokens and not ask.stop_token_ids:
            failure = comparison.end(ask.tokens, cut=choice.finish_reason == "length")
        return failure

    def cold(
        self, asker: Asker, prompt: Prompt, count: int, name: str, *, temperature: float = 0.0
    ) -> list[Token]:
        """`count` tokens behind `prompt`, from an engine that runs nothing else and has nothing of it cached."""
        request = GenerationRequest(prompt, count, temperature=temperature, stream=False,
                                    logprobs=not self.without_logprobs, cache_salt=self._new_salt())
        return tokens_of(self._answer(asker, request, name).choices[0])

    def score(self, asker: Asker, prompt: Prompt, tokens: Sequence[Token]) -> list[float | None]:
        """Log-probability of each of `tokens` as part of a prompt, which is read at once and cold."""
        whole = continued(prompt, tokens)
        request = GenerationRequest(whole, 1, stream=False, prompt_logprobs=True, cache_salt=self._new_salt())
        told = self._answer(asker, request, "score").choices[0].prompt_logprobs or []
        return told[len(prompt):]

    def _check_sample(
        self, asker: Asker, prompt: Prompt, tokens: list[Token], name: str, tally: Tally
    ) -> Failure | None:
        """A sample, where the engine can tell of it; else it counts as not compared."""
        noise = self.noise(asker)
        fits = tokens[: max(0, asker.longest - len(prompt) - 1)]
        if not noise.samples_tell or not fits or not asker.time_for_references:
            return None
        for index, (token, score) in enumerate(zip(fits, self.score(asker, prompt, fits), strict=False)):
            if not tally.near(token.logprob, score, noise.tolerance):
                return Failure(
                    f"{name}[{index}] = {_shown(token, score)}, as in a prompt that is read at once",
                    f"{name}[{index}] = {_shown(token, token.logprob)}", reads=self._reads(asker),
                    hint="a sample read what it did not write: is a shared block copied before the first write to it?")
            tally.compared += 1
        return None

    def _reference(self, asker: Asker, prompt: Prompt, count: int, name: str) -> list[Token]:
        asked, known = self._references.get(prompt, (0, []))
        if asked < count:  # not `len(known)`: an answer may end before, and of text it is words that are counted
            known = self.cold(asker, prompt, count, f"reference of {name}")
            self._references[prompt] = count, known
        return known[:count]

    def _answer(self, asker: Asker, request: GenerationRequest, name: str) -> Completion:
        answer = asker.ask_alone(request, name)
        if answer.error is not None or not answer.choices:
            raise EngineProtocol(f"{name}: a prompt alone in the engine is answered with HTTP {answer.status}: "
                                 f"{answer.error or 'nothing'}")
        return answer

    def _new_salt(self) -> str | None:
        return f"pabench-{uuid.uuid4().hex}" if self._salted else None

    def _reads(self, asker: Asker) -> str:
        return f"by self-consistency, without the KV probe: {self.noise(asker).text}"


@dataclass(slots=True)
class _Comparison:
    """One greedy answer held against its reference."""

    check: SelfCheck
    asker: Asker
    prompt: Prompt
    tokens: list[Token]
    name: str
    others: Sequence[tuple[str, Choice]]
    tally: Tally
    at: int = 0                  # the first token that is not compared yet
    departure: int | None = None  # without log-probabilities: a token that what follows must excuse
    departures: int = 0          # tokens that were not the reference's

    def run(self) -> Failure | None:
        """Piece by piece, until the answer ends, a fault is found, or the time is up."""
        while self.at < len(self.tokens) and self.asker.time_for_references:
            reference = self._piece()
            for token, expected in zip(self.tokens[self.at:], reference, strict=False):
                failure = self._step(token, expected)
                if failure is not None:
                    return failure
                if token.key != expected.key:
                    break
            if not reference:
                return None  # alone it has nothing more to say: no more can be compared
        if self.departure is not None and self.at - self.departure - 1 < _FOLLOWS_AT_LEAST:
            self.tally.compared -= self.at - self.departure - 1  # too little follows to excuse it or not
        return None

    def end(self, count: int, *, cut: bool) -> Failure | None:
        """What is wrong with an answer that ended before its `count` tokens: `cut` for its length, it says, or of
        itself. What it lacks counts as not compared.
        """
        if not self.asker.time_for_references:
            return None
        # Words are fewer than tokens: only the same request alone tells how many there must be.
        whole, at = self.check._reference(self.asker, self.prompt, count, self.name), len(self.tokens)
        if whole and whole[-1].key == _CUT_CHARACTER:
            whole = whole[:-1]
        self.tally.total += len(whole[at:])
        if len(whole) <= at or any(a.key != b.key for a, b in zip(self.tokens, whole, strict=False)):
            return None
        # Who ends of itself may have been near a tie with what follows. Who says that it was cut was not.
        lead = whole[at].lead
        if not cut and (lead is None or lead <= self.check.noise(self.asker).tolerance):
            return None
        what = "words" if self.check.without_logprobs else "tokens"
        return Failure(f"{self.name}[{at}] = {_led(whole[at])}, as alone and cold",
                       f"{self.name} ends after {at} {what}", self.check._reads(self.asker),
                       "was a token lost, or a sequence taken for another that has ended?")

    def _piece(self) -> list[Token]:
        left = len(self.tokens) - self.at
        halved = self.check.cold_at_any_time and left > _WHOLE_PIECE and self.at == 0
        behind = continued(self.prompt, self.tokens[: self.at], self.check.noise(self.asker).joiner)
        return self.check._reference(self.asker, behind, (left + 1) // 2 if halved else left, self.name)

    def _step(self, token: Token, expected: Token) -> Failure | None:
        """Compare one token, and go on to the next."""
        index = self.at
        self.at += 1
        tolerance = self.check.noise(self.asker).tolerance
        if token.key == expected.key:
            if expected.logprob is not None and not self.tally.near(token.logprob, expected.logprob, tolerance):
                return self._failure(index, token, expected)
            self.tally.compared += 1
            if self.departure is not None and index - self.departure >= _FOLLOWS:
                self.departure = None
            return None
        self.departures += 1
        if self.check.without_logprobs:
            if self.departure is not None or self.departures > 1 + len(self.tokens) // _RARE:
                return self._failure(index, token, expected)
            self.departure = index
        elif not _nearly_tied(token, expected, tolerance):
            return self._failure(index, token, expected)
        self.tally.ties += 1
        return None

    def _failure(self, index: int, token: Token, expected: Token) -> Failure:
        return Failure(f"{self.name}[{index}] = {_led(expected)}, as alone and cold",
                       f"{self.name}[{index}] = {_shown(token, token.logprob)}", self.check._reads(self.asker),
                       self._foreign(index))

    def _foreign(self, index: int) -> str:
        """A hint where the answer goes on as another request's does; else where to look."""
        wanted = [token.key for token in self.tokens[index : index + _NAMED]]
        for name, choice in self.others:
            keys = [token.key for token in tokens_of(choice)]
            for place in range(len(keys) - _NAMED + 1):
                if len(wanted) == _NAMED and keys[place : place + _NAMED] == wanted:
                    return f"it goes on as {name} does from its token {place} on: is a block or a row of both one?"
        return ("the same prompt is answered otherwise alone and cold: what was read from the cache was not its own, "
                "not yet written, or at another position")


def _nearly_tied(token: Token, expected: Token, tolerance: float) -> bool:
    """Whether noise may have put `token` before `expected`: neither led by more than it can move, and both, less what
    it can move, may be tokens of one distribution.
    """
    if any(each.lead is not None and each.lead > tolerance for each in (token, expected)):
        return False
    a, b = token.logprob, expected.logprob
    if a is None or b is None or not abs(a - b) <= 2 * tolerance or max(a, b) > tolerance:
        return False
    return math.exp(a - tolerance) + math.exp(b - tolerance) <= 1


def _led(token: Token) -> str:
    """What was expected, and by how much."""
    return _shown(token, token.logprob) + ("" if token.lead is None else f", {token.lead:.3g} nats before any other")


def _shown(token: Token, logprob: float | None) -> str:
    told = "" if logprob is None else f" at log-probability {logprob:.4f}"
    return (f"token {token.key}" if isinstance(token.key, int) else repr(token.key[:40])) + told
