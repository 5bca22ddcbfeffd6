"""Interrupts that wait: what stands in several places is changed in all of them, or in none."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """What interrupts or terminates within is heard when it ends. Outside the main thread nothing strikes anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    # A handler that is not Python's (None) cannot be put back, and breaks off no Python.
    theirs = {number: handler for number in _ENDING if (handler := signal.getsignal(number)) is not None}
    try:
        for number in theirs:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in theirs.items():
            signal.signal(number, handler)
        for each in dict.fromkeys(held):
            signal.raise_signal(each)
