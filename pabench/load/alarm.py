"""Waiting for a moment, to a tenth of a millisecond: an event loop's own timers count whole ones, and may be early.

On Linux one kernel timer (timerfd) wakes all who wait; elsewhere the loop's timers do, and what they are early by is
waited for again.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import struct
import sys
from itertools import count

from pabench.load.line import clock

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_TIMER_ABSTIME = 1
_ITIMERSPEC = struct.Struct("@llll")  # interval and first expiry, each as seconds and nanoseconds


class KernelTimer:
    """A file that becomes readable at a moment of the monotonic clock, once or again and again (timerfd, Linux)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.file: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK)
        if self.file < 0:
            raise OSError(ctypes.get_errno(), "no timer from the kernel")

    def set(self, first_s: float, interval_s: float = 0.0) -> None:
        """Readable at `first_s` and, with an interval, every `interval_s` after."""
        times = [part for value in (interval_s, first_s) for part in divmod(int(value * 1e9), 10**9)]
        if self._libc.timerfd_settime(self.file, _TFD_TIMER_ABSTIME, _ITIMERSPEC.pack(*times), None) != 0:
            raise OSError(ctypes.get_errno(), "the kernel's timer cannot be set")

    def read(self) -> int:
        """How often it has gone off since it was last read: 0 when not at all."""
        try:
            return int.from_bytes(os.read(self.file, 8), sys.byteorder)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Give the file back."""
        os.close(self.file)


class Alarm:
    """Wakes tasks of one event loop at their moments, or all of them when it is stopped. A context manager."""

    def __init__(self) -> None:
        self.stopped = False
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._timer: KernelTimer | None = None

    def __enter__(self) -> Alarm:
        if sys.platform == "linux":
            self._timer = KernelTimer()
            asyncio.get_running_loop().add_reader(self._timer.file, self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            asyncio.get_running_loop().remove_reader(self._timer.file)
            self._timer.close()
            self._timer = None

    async def until(self, time_s: float) -> bool:
        """Wait for `time_s`; True when it is stopped before."""
        while not self.stopped and time_s > clock():
            sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._sleepers, (time_s, next(self._numbers), sleeper))
            if self._sleepers[0][2] is sleeper:
                self._set(time_s)
            await sleeper
        return self.stopped

    def stop(self) -> None:
        """Wake all, and let nobody sleep any more."""
        self.stopped = True
        self._wake(float("inf"))

    def _set(self, time_s: float) -> None:
        if self._timer is not None:
            self._timer.set(time_s)
        else:
            asyncio.get_running_loop().call_later(time_s - clock(), self._ring)

    def _ring(self) -> None:
        if self._timer is not None:
            self._timer.read()
        self._wake(clock())
        if self._sleepers:
            self._set(self._sleepers[0][0])

    def _wake(self, time_s: float) -> None:
        while self._sleepers and self._sleepers[0][0] <= time_s:
            _, _, sleeper = heapq.heappop(self._sleepers)
            if not sleeper.done():  # cancelled with its task
                sleeper.set_result(None)
