"""Workers on the machines of a Ray cluster: each is an actor that keeps a `ProcessWorker` beside it.

The load itself runs in that process, and not under Ray: no library's thread stands in the way of its event loop. Ray
spreads the actors, carries jobs there, and progress and journals back. Clocks are related before the start: of some
exchanges with an actor, the one that came back soonest tells its clock's offset, and half its time bounds the error.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pabench.errors import UsageError
from pabench.load.line import clock
from pabench.load.measure import Progress, ProgressState
from pabench.load.worker import End, Job, Worker
from pabench.load.worker_process import ProcessWorker

_CLOCK_TRIES = 20
_MOST_CLOCK_ERROR_S = 0.005
_POLL_S = 0.25
_PIECE_BYTES = 16 << 20  # of a journal, at once


class Afar:
    """The actor's side."""

    def __init__(self, job: Job) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pabench-")
        self._journal = Path(self._folder.name) / job.journal.name
        self._worker = ProcessWorker(replace(job, journal=self._journal))
        self._running: asyncio.Task[None] | None = None
        self._state: ProgressState | None = None

    async def prepare(self) -> list[str]:
        """See Worker."""
        return await self._worker.prepare()

    async def clock(self) -> float:
        """This machine's."""
        return clock()

    async def start(self, start_s: float) -> None:
        """Begin the job, at a time of this machine's clock."""
        self._running = asyncio.create_task(self._worker.run(start_s, self._note))

    async def state(self) -> ProgressState | End | None:
        """How far it is; an End when it is over. Raises WorkerDied."""
        assert self._running is not None, "it was started"
        if not self._running.done():
            return self._state
        if not self._running.cancelled():
            self._running.result()
        return self._worker.end

    async def stop(self) -> None:
        """End early."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def journal(self, at: int) -> bytes:
        """A piece of the journal; empty behind its end."""
        if not self._journal.exists():
            return b""
        with self._journal.open("rb") as file:
            file.seek(at)
            return file.read(_PIECE_BYTES)

    async def close(self) -> None:
        """Let the process go, and what it wrote."""
        await self._worker.close()
        self._folder.cleanup()

    def _note(self, state: ProgressState) -> None:
        self._state = state


class RayWorker:
    """A `worker.Worker` on some machine of the cluster. Raises what its process raises, and RayError."""

    def __init__(self, job: Job, actor: Any, dismiss: Callable[[], None]) -> None:
        self.end: End | None = None
        self._job = job
        self._actor, self._dismiss = actor, dismiss
        self._offset_s = 0.0  # its clock less ours
        self._started = self._closed = False

    async def prepare(self) -> list[str]:
        """See Worker; clocks are related here, which a note tells."""
        notes: list[str] = await self._actor.prepare.remote()
        self._offset_s, error_s = await relate_clocks(self._actor.clock.remote)
        if error_s > _MOST_CLOCK_ERROR_S:
            raise UsageError(f"the clock of a machine of the cluster is known to {error_s * 1e3:.1f} ms only, expected "
                             f"{_MOST_CLOCK_ERROR_S * 1e3:g} or less: take machines that are nearer to one another")
        return [*notes, f"clock of worker {self._job.journal.stem}: known to {error_s * 1e3:.2f} ms"]

    async def run(self, start_s: float, progress: Progress) -> None:
        """See Worker."""
        await self._actor.start.remote(start_s + self._offset_s)
        self._started = True
        try:
            while not isinstance(state := await self._actor.state.remote(), End):
                if state is not None:
                    progress(state)
                await asyncio.sleep(_POLL_S)
            self.end = state
        except asyncio.CancelledError:
            await self._actor.stop.remote()
            self.end = await self._actor.state.remote()
            raise

    async def close(self) -> None:
        """See Worker. The journal is fetched."""
        if self._closed:
            return
        self._closed = True
        if self._started:
            with self._job.journal.open("wb") as file:
                while piece := await self._actor.journal.remote(file.tell()):
                    file.write(piece)
        await self._actor.close.remote()
        self._dismiss()


def hire_over_ray(jobs: Sequence[Job], address: str) -> list[Worker]:
    """An actor for each job, spread over the machines of the cluster at `address` ("local": one of its own, here).

    Raises UsageError where Ray is not installed or not there.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray: install it with `pip install 'pabench[ray]'`, here and on every machine"
                         ) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UsageError(f"no Ray cluster at {address!r}: {reason}") from None
    remote: Any = ray.remote(Afar).options(num_cpus=1, scheduling_strategy="SPREAD")
    actors: list[Any] = [remote.remote(job) for job in jobs]
    return [RayWorker(job, actor, partial(ray.kill, actor)) for job, actor in zip(jobs, actors, strict=True)]


async def relate_clocks(ask: Callable[[], Awaitable[float]]) -> tuple[float, float]:
    """(their clock less ours, the most it can be wrong by) in seconds, by what `ask` says of theirs.

    Their answer was given between our question and its arrival: in the middle, give or take half (Cristian, 1989).
    """
    best = (0.0, float("inf"))
    for _ in range(_CLOCK_TRIES):
        asked_s = clock()
        theirs_s = await ask()
        now_s = clock()
        error_s = (now_s - asked_s) / 2
        if error_s < best[1]:
            best = (theirs_s - (asked_s + now_s) / 2, error_s)
    return best
