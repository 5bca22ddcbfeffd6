"""Workers on the machines of a Ray cluster: each is an actor that keeps a `ProcessWorker` beside it.

The load itself runs in that process, and not under Ray: no library's thread stands in the way of its event loop. Ray
spreads the actors, carries jobs there, and progress and journals back. Clocks are related before the start: of some
exchanges with an actor, the one that came back soonest tells its clock's offset, and half its time bounds the error.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pabench.errors import PabenchError, UsageError
from pabench.load.line import clock
from pabench.load.measure import Progress, ProgressState
from pabench.load.worker import End, Job, Worker
from pabench.load.worker_process import ProcessWorker, WorkerDied

_CLOCK_TRIES = 20
_CLOCK_PATIENCE_S = 5.0  # of more tries, while none is good enough: a busy machine answers soon once in a while
_MOST_CLOCK_ERROR_S = 0.005
_POLL_S = 0.25
_KNOCK_S = 5.0
_ROOM_S = 5.0             # that CPUs which others leave have to show as free
_PIECE_BYTES = 16 << 20  # of a journal, at once


class RayHost:
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

    async def node(self) -> str:
        """Which of the cluster's it is on."""
        import ray

        found: str = ray.get_runtime_context().get_node_id()
        return found

    async def clock(self) -> float:
        """This machine's."""
        return clock()

    async def start(self, start_s: float) -> None:
        """Begin the job, at a time of this machine's clock."""
        self._running = asyncio.create_task(self._worker.run(start_s, self._note))

    async def state(self) -> ProgressState | End | None:
        """How far it is; an End when it is over. Raises WorkerDied."""
        if self._running is None:  # it was stopped before it was started
            return End(unsent_kind="interrupt")
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
    """A `worker.Worker` on some machine of the cluster. Raises WorkerDied when its process, or the machine, is gone."""

    def __init__(self, job: Job, actor: Any, dismiss: Callable[[], None]) -> None:
        self.end: End | None = None
        self._job = job
        self._actor, self._dismiss = actor, dismiss
        self._offset_s = 0.0  # its clock less ours
        self._started = self._closed = False

    async def prepare(self) -> list[str]:
        """See Worker; clocks are related here, which a note tells."""
        notes: list[str] = await self._ask("prepare")
        self._offset_s, error_s = await relate_clocks(partial(self._ask, "clock"))
        if error_s > _MOST_CLOCK_ERROR_S:
            raise UsageError(f"the clock of a machine of the cluster is known to {error_s * 1e3:.1f} ms only, expected "
                             f"{_MOST_CLOCK_ERROR_S * 1e3:g} or less: take machines that are nearer to one another")
        return [*notes, f"clock of worker {self._job.journal.stem}: known to {error_s * 1e3:.2f} ms"]

    async def run(self, start_s: float, progress: Progress) -> None:
        """See Worker."""
        self._started = True
        await self._ask("start", start_s + self._offset_s)
        try:
            while not isinstance(state := await self._ask("state"), End):
                if state is not None:
                    progress(state)
                await asyncio.sleep(_POLL_S)
            self.end = state
        except asyncio.CancelledError:
            await self._ask("stop")
            self.end = await self._ask("state")
            raise

    async def close(self) -> None:
        """See Worker. The journal is fetched."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(WorkerDied):  # which `run` has told: what it kept is lost with its machine
            if self._started:
                with self._job.journal.open("wb") as file:
                    while piece := await self._ask("journal", file.tell()):
                        file.write(piece)
            await self._ask("close")
        self._dismiss()

    async def _ask(self, method: str, *arguments: object) -> Any:
        """What the actor answers. Raises what it raises, and WorkerDied when it is gone."""
        from ray.exceptions import RayError

        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayError as error:
            if isinstance(error, PabenchError):  # Ray raises what is both
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise WorkerDied(f"a worker of the load on the Ray cluster is gone: {type(error).__name__} {reason}"
                             ) from None


def ray_workers_for(jobs: Sequence[Job], address: str) -> list[Worker]:
    """An actor for each job, spread over the machines of the cluster at `address`: HOST:PORT, or "auto".

    Raises UsageError where Ray is not installed or not there.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray: install it with `pip install 'pabench[ray]'`, here and on every machine"
                         ) from None
    if not ray.is_initialized():
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UsageError(f"no Ray cluster at {address!r}: {reason}; expected HOST:PORT of its head, or auto on one "
                             "of its machines") from None
    _need_room(len(jobs))
    remote: Any = ray.remote(RayHost).options(num_cpus=1, scheduling_strategy="SPREAD")
    actors: list[Any] = [remote.remote(job) for job in jobs]
    return [RayWorker(job, actor, partial(ray.kill, actor)) for job, actor in zip(jobs, actors, strict=True)]


def _need_room(num_workers: int) -> None:
    """Raise UsageError where the cluster has too few free CPUs: Ray would let the last workers wait for ever."""
    import ray

    waited_until_s = clock() + _ROOM_S
    resources: Any = ray.available_resources
    while (free := int(resources().get("CPU", 0))) < num_workers:
        if clock() > waited_until_s:
            raise UsageError(f"the Ray cluster has {free} free CPUs, and {num_workers} workers take one each: lower "
                             "--workers, or add machines")
        time.sleep(_POLL_S)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


async def relate_clocks(ask: Callable[[], Awaitable[float]]) -> tuple[float, float]:
    """(their clock less ours, the most it can be wrong by) in seconds, by what `ask` says of theirs.

    Their answer was given between our question and its arrival: in the middle, give or take half (Cristian, 1989).
    """
    best = (0.0, float("inf"))
    begun_s, tries = clock(), 0
    while tries < _CLOCK_TRIES or (best[1] > _MOST_CLOCK_ERROR_S and clock() - begun_s < _CLOCK_PATIENCE_S):
        tries += 1
        asked_s = clock()
        theirs_s = await ask()
        now_s = clock()
        error_s = (now_s - asked_s) / 2
        if error_s < best[1]:
            best = (theirs_s - (asked_s + now_s) / 2, error_s)
    return best
