"""The event loop of a load: uvloop, where there is one, reads four times as many chunks a second as asyncio's own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`, on uvloop but on Windows. A termination that the program handles ends `work` as Ctrl-C does."""
    if sys.platform == "win32":
        return asyncio.run(work)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_terminable(work))


async def _terminable(work: Coroutine[Any, Any, Result]) -> Result:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "this is one"

    def end() -> None:
        task.cancel()
        loop.call_soon_threadsafe(lambda: None)  # it may be asleep

    with _on_termination(end) as told:
        try:
            result = await work
        except asyncio.CancelledError:
            if told:
                raise KeyboardInterrupt from None
            raise
        if told:  # it struck where nothing is awaited any more
            raise KeyboardInterrupt
        return result


@contextlib.contextmanager
def _on_termination(end: Callable[[], object]) -> Iterator[list[int]]:
    """`end` is called in place of the program's own handler, and the context tells whether it was. That one raises an
    interrupt wherever the program is: asyncio's watch keeps one from what would swallow it, a parser's callback for
    instance, but not in a program that a shell has started in the background, where Ctrl-C is ignored.
    """
    told: list[int] = []
    theirs = signal.getsignal(signal.SIGTERM)

    def once(number: int, frame: FrameType | None) -> None:
        if told and callable(theirs):  # again: as the program has it
            theirs(number, frame)
        told.append(number)
        end()

    if not callable(theirs) or threading.current_thread() is not threading.main_thread():
        yield told
        return
    signal.signal(signal.SIGTERM, once)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, theirs)
