"""One answer held against its reference, token by token: `selfcheck` says by what rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pabench.conformance.failure import Failure
from pabench.conformance.tokens import CUT_CHARACTER, Prompt, Token, agreement, continued, tokens_of
from pabench.engines.base import Choice, Completion, EngineFacts, GenerationRequest

if TYPE_CHECKING:
    from pabench.conformance.selfcheck import SelfCheck

_WHOLE_PIECE = 8      # tokens of an answer that is not asked for in two pieces
_FOLLOWS = 8          # tokens that must follow a departure as they would alone
_FOLLOWS_AT_LEAST = 4  # where the answer ends before
_RARE = 32            # tokens to a further departure, without log-probabilities
_NAMED = 3            # tokens in a row that tell another request's answer from chance


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


@dataclass(slots=True)
class Comparison:
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
            for token, expected, same in agreement(self.tokens[self.at:], reference):
                failure = self._step(token, expected, same=same)
                if failure is not None:
                    return failure
                if not same:
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
        whole, at = self.check.reference(self.asker, self.prompt, count, self.name), len(self.tokens)
        if whole and whole[-1].key == CUT_CHARACTER:
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
                       f"{self.name} ends after {at} {what}", self.check.reads(self.asker),
                       "was a token lost, or a sequence taken for another that has ended?")

    def _piece(self) -> list[Token]:
        left = len(self.tokens) - self.at
        halved = self.check.cold_at_any_time and left > _WHOLE_PIECE and self.at == 0
        behind = continued(self.prompt, self.tokens[: self.at], self.check.noise(self.asker).joiner)
        return self.check.reference(self.asker, behind, (left + 1) // 2 if halved else left, self.name)

    def _step(self, token: Token, expected: Token, *, same: bool) -> Failure | None:
        """Compare one token, and go on to the next. `same`: as far as both go."""
        index = self.at
        self.at += 1
        tolerance = self.check.noise(self.asker).tolerance
        if same:
            if expected.logprob is not None and not self.tally.near(token.logprob, expected.logprob, tolerance):
                return self._failure(index, token, expected)
            self.tally.compared += 1
            if self.departure is not None and index - self.departure >= _FOLLOWS:
                self.departure = None
            return None
        if self.check.without_logprobs:
            tied = self._words_tied(token, expected)
        else:
            tied = nearly_tied(token, expected, tolerance)
        if tied is False:
            return self._failure(index, token, expected)
        self.tally.ties += tied is True
        return None

    def _words_tied(self, token: Token, expected: Token) -> bool | None:
        """Without log-probabilities, of the token before `at`: by samples, or until what follows it says more."""
        noise = self.check.noise(self.asker)
        if noise.samples_vary:
            behind = continued(self.prompt, self.tokens[: self.at - 1], noise.joiner)
            return self.check.tied(self.asker, behind, token, expected)
        self.departures += 1
        first, self.departure = self.departure is None, self.at - 1
        return first and self.departures <= 1 + len(self.tokens) // _RARE

    def _failure(self, index: int, token: Token, expected: Token) -> Failure:
        return Failure(f"{self.name}[{index}] = {_led(expected)}, as alone and cold",
                       f"{self.name}[{index}] = {shown(token, token.logprob)}", self.check.reads(self.asker),
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


def nearly_tied(token: Token, expected: Token, tolerance: float) -> bool:
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
    return shown(token, token.logprob) + ("" if token.lead is None else f", {token.lead:.3g} nats before any other")


def shown(token: Token, logprob: float | None) -> str:
    """A token in a failure, at this log-probability."""
    told = "" if logprob is None else f" at log-probability {logprob:.4f}"
    return (f"token {token.key}" if isinstance(token.key, int) else repr(token.key[:40])) + told
