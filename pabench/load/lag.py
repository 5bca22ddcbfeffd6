"""How late the event loop sees what has arrived. Where the loop stamps arrivals, that is the client's error in each.

A kernel timer becomes readable at a known moment, and goes the way that an engine's bytes go: readiness, then the
callback that reads the clock. What it is late by then is what an answer's bytes would have been late by. A plain
`asyncio.sleep` would measure the loop's timers instead, which are rounded up to whole milliseconds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from pabench.load.alarm import KernelTimer
from pabench.load.line import clock
from pabench.load.manifest import ClientHealth

_INTERVAL_S = 0.01


class LoopLag:
    """Samples, while `watch` runs, how late a timer is seen; and the CPU time spent meanwhile.

    Every tick counts, those that a stall swallowed too: each is late by its own distance to the stall's end. What is
    due after the last `loaded` does not: a last long answer would dilute what the load did to the client.
    """

    def __init__(self) -> None:
        self._due_s, self._late_s = array("d"), array("d")  # of each tick
        self._started_s = clock()
        self._cpu_s = time.process_time()
        self._until: tuple[float, float] | None = None  # the time and the CPU time then

    async def watch(self) -> None:
        """Sample until cancelled."""
        self._started_s, self._cpu_s = clock(), time.process_time()
        if sys.platform == "linux":
            await self._watch_timer()
        else:
            await self._watch_sleep()

    async def _watch_timer(self) -> None:
        loop = asyncio.get_running_loop()
        first_s = clock() + _INTERVAL_S
        timer = KernelTimer()
        timer.set(first_s, _INTERVAL_S)
        num_seen = 0

        def note() -> None:
            nonlocal num_seen
            now_s = clock()
            num_ticks = timer.read()
            for tick in range(num_seen, num_seen + num_ticks):
                self._note(first_s + tick * _INTERVAL_S, now_s)
            num_seen += num_ticks

        loop.add_reader(timer.file, note)
        try:
            await loop.create_future()  # until cancelled
        finally:
            loop.remove_reader(timer.file)
            timer.close()

    async def _watch_sleep(self) -> None:
        """Where there are no timers to read: right to a millisecond, on the late side."""
        while True:
            due_s = clock() + _INTERVAL_S
            await asyncio.sleep(_INTERVAL_S)
            self._note(due_s, clock())

    def _note(self, due_s: float, seen_s: float) -> None:
        self._due_s.append(due_s)
        self._late_s.append(max(0.0, seen_s - due_s))

    def loaded(self) -> None:
        """The load is on until now, at least."""
        self._until = (clock(), time.process_time())

    def stop(self) -> None:
        """What comes after is not measurement."""
        if self._until is None:
            self.loaded()

    @property
    def lags_s(self) -> Sequence[float]:
        """How late each tick was, under the load; all of them where it lasted for none."""
        until_s = clock() if self._until is None else self._until[0]
        return self._late_s[:bisect_right(self._due_s, until_s)] or self._late_s

    def _cpu_share(self) -> float | None:
        if self._until is None or self._until[0] <= self._started_s:
            return None
        return (self._until[1] - self._cpu_s) / (self._until[0] - self._started_s)

    def health(self) -> ClientHealth:
        """Lag and CPU share, for the manifest."""
        lags_s = self.lags_s
        p50, p99, most = quantiles_ms(lags_s)
        percentiles = np.percentile(lags_s, np.arange(101)) if lags_s else np.empty(0)
        return ClientHealth(
            loop_lag_percentiles_ms=[round(float(value) * 1e3, 4) for value in percentiles],
            loop_lag_p50_ms=p50, loop_lag_p99_ms=p99, loop_lag_max_ms=most, cpu_share=self._cpu_share(),
        )


def quantiles_ms(samples_s: Sequence[float]) -> tuple[float, float, float] | tuple[None, None, None]:
    """Median, p99 and maximum in ms of `samples_s`, in seconds; None of none."""
    if not samples_s:
        return None, None, None
    p50, p99 = np.quantile(samples_s, [0.5, 0.99])
    return float(p50) * 1e3, float(p99) * 1e3, max(samples_s) * 1e3
