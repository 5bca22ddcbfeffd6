"""The measurement itself: dispatch on time, watch the client, stop when told. No parsing, no writing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pabench.load.alarm import Alarm
from pabench.load.arrivals import ClosedArrivals
from pabench.load.client import LoadClient, PreparedRequest
from pabench.load.connection import Exchange
from pabench.load.journal import Journal
from pabench.load.lag import LoopLag
from pabench.load.line import clock
from pabench.load.schedule import Lane, ScheduledRequest
from pabench.load.window import BUSY_SHARE
from pabench.load.workload import Workload

_PROGRESS_S = 0.25
_CONNECT_TIMEOUT_S = 5.0
_RECENT = 32          # requests that live figures are of
_AHEAD_S = 0.05       # before a request is due its bytes are made: for a long prompt that takes milliseconds
_STRIKES = 3          # refused connections in a row after which the engine is taken for dead


@dataclass(frozen=True, slots=True)
class ProgressState:
    """How far a run is. `output_tokens` counts stream events: near, exact only after the run."""

    done: int
    total: int
    in_flight: int
    output_tokens: int
    errors: int
    elapsed_s: float
    kv_usage: float | None = None   # 0..1, from the last scrape
    running: float | None = None    # requests in the engine's batch
    waiting: float | None = None
    settled: int = 0                # afterwards: requests whose answers were read
    ttft_s: float | None = None     # of the requests that ended last, the mean
    itl_s: float | None = None      # between their stream events


Progress = Callable[[ProgressState], None]


class Measurement:
    """Requests on their way, and those to come: whole lanes, of requests that follow one another.

    What has ended is the journal's. `written` gives a scheduled request's bytes. `until_s`: when sending ends, seconds
    from the run's start.
    """

    def __init__(
        self, url: str, workload: Workload, lanes: Sequence[Lane], written: Callable[[ScheduledRequest],
        PreparedRequest], client: LoadClient, journal: Journal, *, start_s: float, until_s: float = float("inf"),
    ) -> None:
        self.lag = LoopLag()
        self.failure: str | None = None       # why it ended early
        self.unsent_kind: str | None = None   # why requests were not sent
        self._url = url
        self._workload = workload
        self._lanes = lanes
        self._total = sum(len(lane.requests) for lane in lanes)
        self._written = written
        self._client = client
        self._journal = journal
        self._start_s = start_s               # the run's zero
        self._until_s = start_s + until_s
        self._alarm = Alarm()
        self._strikes = 0
        self._done = 0
        self._errors = 0
        self._lanes_busy = len(lanes)
        self._broken = False                          # some connection was
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # TTFT, ITL
        self._tasks: set[asyncio.Task[None]] = set()  # that go on
        self._error: BaseException | None = None      # of our own making

    async def run(self, progress: Progress | None) -> None:
        """Send everything, or until the engine dies or the disk is full. Cancelling it aborts what is in flight."""
        helpers = [asyncio.create_task(self.lag.watch()), asyncio.create_task(self._tick(progress))]
        try:
            with self._alarm:
                await self._run_lanes()
            await self._note_death()
            for helper in helpers:
                if helper.done():
                    helper.result()  # it ends only by an exception, as of the progress callback
        except asyncio.CancelledError:
            self.unsent_kind = "interrupt"
            raise
        finally:
            self.lag.stop()
            await self._cancel({*self._tasks, *helpers})
            if progress is not None:
                progress(self._state())

    def _state(self) -> ProgressState:
        return ProgressState(
            done=self._done, total=self._total, in_flight=self._client.in_flight,
            output_tokens=self._client.num_events, errors=self._errors, elapsed_s=max(0.0, clock() - self._start_s),
            ttft_s=mean_of(ttft_s for ttft_s, _ in self._recent), itl_s=mean_of(itl_s for _, itl_s in self._recent),
        )

    async def _run_lanes(self) -> None:
        """Start each lane a little before its first request is due."""
        for lane in self._lanes:
            intended_s = self._start_s + lane.first_s
            if await self._alarm.until(intended_s - _AHEAD_S):
                break
            self._spawn(self._run_turns(lane.requests, intended_s))
            await asyncio.sleep(0)  # one at a time: what is due meanwhile is sent between them
        await self._finish_tasks()

    async def _run_turns(self, requests: Sequence[ScheduledRequest], intended_s: float) -> None:
        """One request after the other: those of a session, or of a user, who may have several sessions."""
        arrivals, session = self._workload.arrivals, self._workload.session
        before_s: float | None = None
        for scheduled in requests:
            if before_s is not None:
                if scheduled.turn:
                    assert session is not None, "it has turns"
                    intended_s = before_s + session.think_s
                else:
                    intended_s = before_s + (arrivals.think_s if isinstance(arrivals, ClosedArrivals) else 0.0)
            if intended_s >= self._until_s:
                self.unsent_kind = self.unsent_kind or "duration"
                return
            request = self._written(scheduled)  # before it is due: only those in flight are kept as bytes
            if await self._alarm.until(intended_s):
                return
            self.lag.loaded()  # a request is sent
            before_s = await self._send(request, intended_s)

    async def _send(self, request: PreparedRequest, intended_s: float) -> float:
        """When it had ended: by the kernel's stamp where there is one, so that a late client is not early to ask."""
        exchange = Exchange(request.index, intended_s)
        try:
            await self._client.carry(request, exchange)
        finally:
            if exchange.times_s and exchange.sent_s is not None:
                first_s, last_s = exchange.times_s[0], exchange.times_s[-1]
                self._recent.append((first_s - exchange.sent_s, (last_s - first_s) / max(1, exchange.num_events - 1)))
            self._journal.add(exchange)
        self._done += 1
        if exchange.fault not in (None, "planned") or exchange.status != 200:
            self._errors += 1
        self._broken |= exchange.fault in ("reset", "connect")
        if exchange.fault == "connect":
            self._strikes += 1
            if self._strikes >= _STRIKES:
                self._give_up(f"the engine at {self._url} takes no connection any more: {exchange.fault_text}")
        elif exchange.status is not None:
            self._strikes = 0
        return exchange.end_s or clock()

    def _give_up(self, failure: str, unsent_kind: str = "engine-died") -> None:
        if not self._alarm.stopped:
            self.failure, self.unsent_kind = failure, unsent_kind
            self._alarm.stop()

    async def _note_death(self) -> None:
        """An engine that died under the last requests has nobody left to refuse: ask once more."""
        if self.failure is None and self._broken:
            why = await refusal(self._url)
            if why is not None:
                self._give_up(f"the engine at {self._url} died during the run: {why}")

    async def _tick(self, progress: Progress | None) -> None:
        while True:
            self._note_load()
            if self._journal.error is not None:
                self._give_up(str(self._journal.error), "interrupt")
                await self._cancel(self._tasks)
            if progress is not None:
                progress(self._state())
            await asyncio.sleep(_PROGRESS_S)

    def _note_load(self) -> None:
        """Tell the watch of lag that the load is still on: in the steady window, as `window.py` finds it."""
        window_s = self._workload.window_s
        asked = window_s is not None and clock() - self._start_s < window_s[1]
        if asked or (self._workload.users is not None and self._lanes_busy >= BUSY_SHARE * len(self._lanes)):
            self.lag.loaded()

    def _spawn(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._note_load()
        self._lanes_busy -= 1
        self._tasks.discard(task)
        if not task.cancelled():
            self._error = self._error or task.exception()

    async def _finish_tasks(self) -> None:
        """Wait for all; an exception of our own making is raised, a cancelled task is not."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._error is not None:
            raise self._error

    @staticmethod
    async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
        waiting = set(tasks)  # what has ended leaves `self._tasks`
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """No garbage collection inside: in mid-run it would be a pause that no engine is to blame for."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def refusal(url: str) -> str | None:
    """Why nothing can connect to `url`; None when it takes connections."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except TimeoutError:
        return f"no connection within {_CONNECT_TIMEOUT_S:g} s"
    except OSError as error:
        return str(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None
