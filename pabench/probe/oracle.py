"""Whether an answer is what the probe must say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pabench.probe.prompts import ProbePrompt


@dataclass(frozen=True, slots=True)
class Check:
    """Verdict on one answer: tokens confirmed, tokens wrong, and the first wrong output (from 0) or None."""

    verified: int
    wrong: int
    first_wrong: int | None

    @property
    def ok(self) -> bool:
        """Whether every token is right."""
        return self.wrong == 0


def check_answer(prompt: ProbePrompt, ids: Sequence[int]) -> Check:
    """Check the generated `ids` token by token.

    Behind the first wrong token the continuation is another one than asked for, so nothing after it counts as
    verified, not even a token that fits by chance.
    """
    current = prompt.prompt[-1]
    for index, token in enumerate(ids):
        if token not in prompt.successors(current):
            return Check(index, len(ids) - index, index)
        current = token
    return Check(len(ids), 0, None)
