"""Requests of a case: what became of each, and the geometry that their sizes are chosen by."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pabench.engines.base import Completion, EngineFacts, GenerationRequest
from pabench.errors import EngineError

_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class RawPost:
    """A body that is sent as it is: bytes, or what becomes JSON."""

    path: str
    body: bytes | dict[str, object]

    @property
    def text(self) -> str:
        """The body as text."""
        if isinstance(self.body, bytes):
            return self.body.decode("utf-8", "backslashreplace")
        return json.dumps(self.body)


@dataclass(slots=True)
class Exchange:
    """A request and what became of it. Times are seconds on the monotonic clock."""

    request: GenerationRequest | RawPost
    name: str = ""
    sent_s: float | None = None
    end_s: float | None = None
    completion: Completion | None = None
    error: EngineError | None = None
    num_busy: int = 0  # answers of HTTP 429 before this one, each asked again

    @property
    def under_way(self) -> bool:
        """Whether it was sent and has no proper end: broken, a fault of the server's, or still open."""
        if self.sent_s is None:
            return False
        answer = self.completion
        return answer is None or self.error is not None or answer.status >= 500 or answer.truncated

    @property
    def described(self) -> str:
        """Name and size, or the body itself, in a few words."""
        request = self.request
        if isinstance(request, RawPost):
            return f"POST {request.path} {request.text[:_SHOWN_CHARS]}"
        prompt = request.prompt
        length = f"{len(prompt)} prompt tokens" if not isinstance(prompt, str) else f"{len(prompt)} characters"
        return f"{self.name or 'request'} ({length}, max_tokens {request.max_tokens})"


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


def exchange_as_json(exchange: Exchange) -> dict[str, Any]:
    """For a case file."""
    completion, request = exchange.completion, exchange.request
    return {
        "name": exchange.name,
        "request": {"path": request.path, "body": request.text} if isinstance(request, RawPost) else asdict(request),
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
