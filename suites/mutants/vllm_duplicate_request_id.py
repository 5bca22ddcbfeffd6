"""Queues of tokens are kept by the client's id: two requests under one id take their tokens from one queue."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from reference_engine.scheduling.sequence import Request
from reference_engine.serving.answers import Answer
from reference_engine.serving.async_engine import AsyncEngine

BUG = "vllm-duplicate-request-id"
MUST_FAIL = ("http/duplicate-request-ids",)
ENGINE_ARGS: tuple[str, ...] = ()


class _Streams(dict[int, "asyncio.Queue[Any]"]):
    """A second queue under an id that is in use is a name for the first one. Kept, so that the other can go on."""

    def __setitem__(self, name: int, queue: asyncio.Queue[Any]) -> None:
        if name in self:
            queue.get = self[name].get  # type: ignore[method-assign]
        else:
            put = queue.put_nowait
            # One token at a time: who takes the ends of both, being asked for one, would wait for ever.
            queue.put_nowait = lambda batch: [put([item]) for item in batch] if isinstance(batch, list) else put(batch)
            super().__setitem__(name, queue)

    def pop(self, name: int, *default: Any) -> Any:
        return self.get(name)


def apply() -> None:
    """The engine's own number is made of the client's id."""
    init, init_engine = Answer.__init__, AsyncEngine.__init__

    def init_and_rename(
        self: Answer, job: Any, requests: list[Request], model: str, tokenizer: Any, request_id: str
    ) -> None:
        for at, request in enumerate(requests):
            request.id = zlib.crc32(f"{request_id}-{at}".encode())
        init(self, job, requests, model, tokenizer, request_id)

    def init_with_shared_streams(self: AsyncEngine, *args: Any) -> None:
        init_engine(self, *args)
        self._streams = _Streams()

    Answer.__init__ = init_and_rename  # type: ignore[method-assign]
    AsyncEngine.__init__ = init_with_shared_streams  # type: ignore[method-assign]
