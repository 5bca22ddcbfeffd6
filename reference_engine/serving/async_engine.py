"""The engine in a thread of its own, and asyncio beside it.

Commands go to the thread through a queue that it blocks on when idle; tokens come back once a step through
`call_soon_threadsafe`, and are put on a queue for each caller. Nobody polls.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack

from pabench.errors import EngineDied
from reference_engine.engine import Engine, StepOutput
from reference_engine.scheduling.sequence import Request

_Batch = list[StepOutput]
_Args = TypeVarTuple("_Args")
_Result = TypeVar("_Result")


class AsyncEngine:
    """Make it inside a running event loop. All public methods belong to that loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.death: EngineDied | None = None  # why the engine's thread has ended, once it has
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, asyncio.Queue[_Batch | EngineDied]] = {}  # by request id
        self._calls: set[asyncio.Future[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def generate(self, requests: list[Request]) -> AsyncGenerator[_Batch, None]:
        """Tokens of prepared requests, one batch a step that made any, until all choices have ended.

        Closed or cancelled before that, it aborts what is left. Raises EngineDied when the engine's thread ends.
        """
        self.check_alive()
        stream: asyncio.Queue[_Batch | EngineDied] = asyncio.Queue()
        for request in requests:
            self._streams[request.id] = stream
            self._command(self.engine.enqueue, request)
        unfinished = sum(request.params.n for request in requests)
        try:
            while unfinished:
                batch = await stream.get()
                if isinstance(batch, EngineDied):
                    raise batch
                unfinished -= sum(output.finish_reason is not None for _, output in batch)
                yield batch
        finally:
            for request in requests:
                self._streams.pop(request.id, None)
                if unfinished:
                    self._command(self.engine.abort, request)

    async def call(self, function: Callable[[], _Result]) -> _Result:
        """What `function` returns in the engine's thread, as soon as the running step is over. Raises EngineDied."""
        self.check_alive()
        future: asyncio.Future[_Result] = self._loop.create_future()
        self._calls.add(future)
        self._inbox.put(lambda: self._post(self._answer, future, function()))
        return await future

    def check_alive(self) -> None:
        """Raise EngineDied once the engine's thread has ended."""
        if self.death is not None:
            raise self.death

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after its current step, and every open stream with it."""
        self._inbox.put(None)
        self._thread.join(timeout_s)
        self._die(EngineDied("the engine is shutting down"))

    def _command(self, method: Callable[[Request], None], request: Request) -> None:
        self._inbox.put(lambda: method(request))

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while self._obey():
                outputs = self.engine.step()
                if outputs:
                    self._post(self._deliver, outputs)
        except BaseException as error:  # whatever it was, the clients must hear of it
            traceback.print_exc()
            self._post(self._die, EngineDied(f"the engine died: {type(error).__name__}: {error}"))

    def _obey(self) -> bool:
        """Carry out what was asked; sleep while there is no work. False: stop."""
        while True:
            try:
                command = self._inbox.get(block=not self.engine.has_work)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _post(self, function: Callable[[Unpack[_Args]], None], *args: *_Args) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._inbox.put(None)

    # Back in the event loop's thread.

    def _deliver(self, outputs: _Batch) -> None:
        batches: dict[int, tuple[asyncio.Queue[_Batch | EngineDied], _Batch]] = {}
        for item in outputs:
            stream = self._streams.get(item.request.id)
            if stream is not None:  # None: its client has gone
                batches.setdefault(id(stream), (stream, []))[1].append(item)
        for stream, batch in batches.values():
            stream.put_nowait(batch)

    def _answer(self, future: asyncio.Future[_Result], result: _Result) -> None:
        self._calls.discard(future)
        if not future.done():
            future.set_result(result)

    def _die(self, death: EngineDied) -> None:
        self.death = self.death or death
        for stream in self._streams.values():
            stream.put_nowait(self.death)
        for future in self._calls:
            if not future.done():
                future.set_exception(self.death)
        self._calls.clear()
