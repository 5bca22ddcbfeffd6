"""Requests of a case: what became of each, those under way, and the geometry that their sizes are chosen by."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pabench.conformance.session import wait_for
from pabench.conformance.verify import Ask
from pabench.engines.base import Completion, EngineFacts, GenerationRequest
from pabench.errors import EngineError

if TYPE_CHECKING:
    from pabench.conformance.engine import EngineUnderTest


@dataclass(slots=True)
class Exchange:
    """A request and what became of it. Times are seconds on the monotonic clock."""

    request: GenerationRequest
    name: str = ""
    sent_s: float | None = None
    end_s: float | None = None
    completion: Completion | None = None
    error: EngineError | None = None


@dataclass(frozen=True, slots=True)
class Geometry:
    """What sizes are chosen by; None: the engine does not tell."""

    block_size: int | None
    capacity_tokens: int | None
    context_tokens: int | None

    @classmethod
    def of(cls, facts: EngineFacts) -> Geometry:
        """As the engine tells it."""
        kv = facts.kv
        return cls(kv.block_size if kv else None, kv.capacity_tokens if kv else None, facts.max_context_tokens)


class Pending:
    """Requests under way."""

    def __init__(
        self, engine: EngineUnderTest, exchanges: list[Exchange], asks: Sequence[Ask],
        future: concurrent.futures.Future[None],
    ) -> None:
        self.exchanges = exchanges
        self._engine = engine
        self._asks = asks
        self._future = future

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return self._future.done()

    def cancel(self) -> None:
        """Disconnect from all that have not ended."""
        self._future.cancel()

    def wait(self) -> list[Completion]:
        """All answers, in the order of the requests. Raises the first EngineError, naming the request."""
        wait_for(self._future, self._engine.time_left_s)
        for exchange in self.exchanges:
            if exchange.error is not None:
                self._engine.raise_named(exchange.error, self.exchanges)
        return [exchange.completion for exchange in self.exchanges if exchange.completion is not None]

    def verify(self) -> list[Completion]:
        """All answers, each equal to its oracle token by token. Raises CaseFailed for the first that is not."""
        completions = self.wait()
        self._engine.verify(self._asks, completions)
        return completions


def exchange_as_json(exchange: Exchange) -> dict[str, Any]:
    """For a case file."""
    completion = exchange.completion
    return {
        "name": exchange.name,
        "request": asdict(exchange.request),
        "sent_s": exchange.sent_s,
        "end_s": exchange.end_s,
        "error": None if exchange.error is None else f"{type(exchange.error).__name__}: {exchange.error}",
        "answer": None if completion is None else {
            "status": completion.status,
            "error": completion.error,
            "truncated": completion.truncated,
            "usage": None if completion.usage is None else asdict(completion.usage),
            "choices": [
                {"index": choice.index, "text": choice.text, "token_ids": choice.token_ids,
                 "finish_reason": choice.finish_reason}
                for choice in completion.choices
            ],
        },
    }
