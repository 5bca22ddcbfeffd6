"""Requests that the client cuts off after so many tokens."""

from __future__ import annotations

from pabench.engines.base import Dialect
from pabench.load.connection import Exchange


class TokenLimit:
    """Called with the exchange at each read: whether `tokens` have come, over all samples.

    Only the dialect can tell tokens from events without one and from words that look like an event. To parse all that
    came at each read would be quadratic, so it is done when at its pace half of what is missing may be there, and while
    no token comes when a quarter more events have.
    """

    def __init__(self, tokens: int, dialect: Dialect) -> None:
        self._tokens, self._dialect = tokens, dialect
        self._asked_at = 0  # `data:` fields, when it is parsed again
        self._came_before = 0

    def __call__(self, exchange: Exchange) -> bool:
        """Whether to cut it off."""
        if exchange.num_events < self._asked_at:
            return False
        came = self._came(exchange)
        pace = max(1.0, came / max(1, exchange.num_events))
        idle = exchange.num_events // 4 if came == self._came_before else 0
        self._asked_at = exchange.num_events + max(1, idle, int((self._tokens - came) / pace / 2))
        self._came_before = came
        return came >= self._tokens

    def _came(self, exchange: Exchange) -> int:
        chunks = list(zip(exchange.times_s, exchange.pieces, strict=True))
        try:
            answer = self._dialect.parse_stream(exchange.status or 0, chunks, None)
        except Exception:  # of whatever kind: raised while bytes are read, it would break the run off
            return 0  # it ends as the engine ends it, and is judged then
        return sum(len(choice.token_times_s) for choice in answer.choices)
