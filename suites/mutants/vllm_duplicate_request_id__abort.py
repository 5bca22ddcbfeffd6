"""A client that leaves ends every request under its id: who else has that id gets no more tokens."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

from reference_engine.serving.async_engine import AsyncEngine
from reference_engine.serving.server import Server

BUG = "vllm-duplicate-request-id"
MUST_FAIL = ("http/duplicate-request-ids",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """Requests are known by the id that their client chose."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="")
    serve, generate = Server._serve, AsyncEngine.generate
    served: dict[str, set[asyncio.Task[Any]]] = {}

    async def serve_under_a_name(self: Server, http: Any, job: Any) -> Any:
        name.set(http.headers.get("X-Request-Id", ""))
        return await serve(self, http, job)

    async def generate_under_a_name(self: AsyncEngine, requests: Any) -> AsyncIterator[Any]:
        own, task, ended = name.get(), asyncio.current_task(), False
        assert task is not None
        served.setdefault(own, set()).add(task)
        try:
            async for batch in generate(self, requests):
                yield batch
            ended = True
        finally:
            served[own].discard(task)
            if own and not ended:
                for other in served[own]:
                    other.cancel()

    Server._serve = serve_under_a_name  # type: ignore[method-assign]
    AsyncEngine.generate = generate_under_a_name  # type: ignore[method-assign]
