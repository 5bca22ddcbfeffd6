"""An answer as tokens that can be compared: by id with log-probabilities, or by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pabench.engines.base import Choice

Prompt = tuple[int, ...] | str


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


def _words(text: str) -> list[Token]:
    words: list[Token] = []
    at = 0
    for word in text.split():
        end = text.index(word, at) + len(word)
        words.append(Token(word, text=text[at:end]))
        at = end
    return words
