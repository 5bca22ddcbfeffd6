"""Guesses from the text itself: what followed the last time that the same few tokens stood in a row."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

LONGEST = 4   # tokens that must agree, at best: a longer match tells hardly more, and each length costs an entry
SHORTEST = 1  # and at least


class NgramIndex:
    """Where each n-gram of one growing text last had a successor. Extended token by token, never searched."""

    def __init__(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}  # n-gram -> position of the token behind its last occurrence
        self._num_indexed = 0  # positions entered as followers

    def propose(self, tokens: SequenceOf[int], count: int) -> list[int]:
        """At most `count` >= 1 tokens to follow `tokens`, a list that has only grown since the last call.

        Those behind the latest earlier occurrence of the longest known end of the text; [] where there is none. A copy
        that reaches the end of the text goes on in itself, so a loop shorter than `count` is followed round.
        """
        self._extend(tokens)
        for n in range(LONGEST, SHORTEST - 1, -1):
            at = self._follows.get(tuple(tokens[-n:]))
            if at is not None:
                period = len(tokens) - at
                return [tokens[at + i % period] for i in range(count)]
        return []

    def _extend(self, tokens: SequenceOf[int]) -> None:
        follows = self._follows
        for at in range(max(self._num_indexed, SHORTEST), len(tokens)):
            for n in range(SHORTEST, min(LONGEST, at) + 1):
                follows[tuple(tokens[at - n : at])] = at
        self._num_indexed = len(tokens)
