"""An answer as tokens that can be compared: by id with log-probabilities, or by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pabench.engines.base import Choice

Prompt = tuple[int, ...] | str
CUT_CHARACTER = "\ufffd"  # the beginning of one, at the end of a text: some engines leave it out of a stream


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: its id, or a word of its text. Log-probabilities are None where they are not told."""

    key: int | str
    logprob: float | None = None
    runner_up: float | None = None
    text: str = ""  # of a word: as it stands in the answer, with the space before it

    @property
    def lead(self) -> float | None:
        """Nats between this token and the best other one."""
        if self.logprob is None or self.runner_up is None:
            return None
        return self.logprob - self.runner_up


def tokens_of(choice: Choice) -> list[Token]:
    """The tokens of a sample: ids where the engine gives them, else the words of its text."""
    ids = choice.token_ids
    if ids is None:
        return _words(choice.text)
    logprobs: Sequence[float | None] = choice.logprobs or []
    runner_ups: Sequence[float | None] = choice.runner_ups or []
    if len(logprobs) != len(ids):
        logprobs = [None] * len(ids)
    if len(runner_ups) != len(ids):
        runner_ups = [None] * len(ids)
    return [Token(*told) for told in zip(ids, logprobs, runner_ups, strict=True)]


def continued(prompt: Prompt, tokens: Sequence[Token], joiner: str = "") -> Prompt:
    """`prompt` and the beginning of its answer. `joiner` comes between where both are text."""
    if isinstance(prompt, str):
        text = "".join(token.text for token in tokens)
        return f"{prompt}{joiner}{text}" if text else prompt
    return (*prompt, *(int(token.key) for token in tokens))


def agreement(answer: Sequence[Token], reference: Sequence[Token]) -> Iterator[tuple[Token, Token, bool]]:
    """Each token and what it is held against, and whether the two are the same, as far as both answers go.

    So many tokens may be fewer words, the last one cut: it is the same as a longer one that begins with it.
    """
    shorter = min(len(answer), len(reference))
    for i, (token, expected) in enumerate(zip(answer, reference, strict=False)):
        yield token, expected, token.key == expected.key or (i == shorter - 1 and begin_alike(token, expected))


def begin_alike(one: Token, other: Token) -> bool:
    """Whether two ids are the same, or one word begins with the other: either may have been cut."""
    if not isinstance(one.key, str) or not isinstance(other.key, str):
        return one.key == other.key
    short, long = sorted((one.key.rstrip(CUT_CHARACTER), other.key.rstrip(CUT_CHARACTER)), key=len)
    return long.startswith(short)


def _words(text: str) -> list[Token]:
    words: list[Token] = []
    at = 0
    for word in text.split():
        end = text.index(word, at) + len(word)
        words.append(Token(word, text=text[at:end]))
        at = end
    return words
