"""A worker in a process of its own: `ProcessWorker` is here, `serve` is there, and messages go over a pair of sockets.

    here -> there   Job, then a start (float, on the clock that processes of one machine share), then "stop" perhaps
    there -> here   notes on the warm-up (list), ProgressState now and then, an End; or a Broken instead of any of them

Messages are pickled: both sides are this program, and nobody else holds the sockets. The key of an engine is in no
command line so. When this side goes away, killed perhaps, the other ends too, its journal whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from pabench.errors import PabenchError
from pabench.load.loop import run_loop
from pabench.load.measure import Progress, ProgressState
from pabench.load.worker import End, Job, LocalWorker

_SIZE_BYTES = 8
_STOP = "stop"
_PROGRAM = "from pabench.load.worker_process import main; main()"
_LET_GO_S = 5.0  # a process whose sockets are closed ends by itself


class WorkerDied(PabenchError):
    """A process that carried a part of the load is gone."""


class Broken(NamedTuple):
    """An error over there that is no part of an End."""

    error: str


class ProcessWorker:
    """A `worker.Worker` in another process of this machine. Raises WorkerDied when that is gone."""

    def __init__(self, job: Job) -> None:
        self.end: End | None = None
        self._job = job
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def prepare(self) -> list[str]:
        """See Worker. The process is started here."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
            starting = asyncio.create_task(asyncio.create_subprocess_exec(
                sys.executable, "-c", _PROGRAM, str(theirs.fileno()),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True))  # Ctrl-C is for us: we tell it
            try:
                self._process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                self._process = await starting  # no start can be taken back half done: `close` ends it
                raise
        await self._tell(self._job)
        notes: list[str] = await self._hear()
        return notes

    async def run(self, start_s: float, progress: Progress) -> None:
        """See Worker."""
        await self._tell(start_s)
        hearing = asyncio.create_task(self._hear_end(progress))
        try:
            await asyncio.shield(hearing)
        except asyncio.CancelledError:
            await self._tell(_STOP)
            await hearing
            raise

    async def close(self) -> None:
        """See Worker."""
        if self._writer is not None:
            self._writer.close()
        if self._process is None:  # interrupted before it was started
            return
        try:
            async with asyncio.timeout(_LET_GO_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _hear_end(self, progress: Progress) -> None:
        while isinstance(heard := await self._hear(), ProgressState):
            progress(heard)
        self.end = heard

    async def _tell(self, message: object) -> None:
        assert self._writer is not None, "it was started"
        with contextlib.suppress(ConnectionError):  # the answer that does not come tells it better
            await send(self._writer, message)

    async def _hear(self) -> Any:
        assert self._process is not None, "it was started"
        assert self._reader is not None, "it was started"
        try:
            heard = await receive(self._reader)
        except (EOFError, ConnectionError):
            code = await self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise WorkerDied(f"a worker process of the load ended with {how}: what it had kept is in the run's "
                             "folder; less streams a worker need less memory") from None
        if isinstance(heard, Broken):
            raise WorkerDied(f"a worker process of the load broke off: {heard.error}")
        return heard


async def send(writer: asyncio.StreamWriter, message: object) -> None:
    """One message. Raises ConnectionError."""
    writer.write(_framed(message))
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises EOFError when the other side is gone."""
    size = int.from_bytes(await reader.readexactly(_SIZE_BYTES), "little")
    return pickle.loads(await reader.readexactly(size))


def _framed(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_SIZE_BYTES, "little") + data


async def serve(ours: socket.socket) -> None:
    """Over there: do one job, as told."""
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        async with _at_work(LocalWorker(await receive(reader))) as worker:
            await send(writer, await worker.prepare())
            start_s = await receive(reader)
            running = asyncio.create_task(worker.run(start_s, lambda state: writer.write(_framed(state))))
            stopping = asyncio.create_task(_stop_when_told(reader, running))
            await asyncio.wait({running})
            stopping.cancel()
            if not running.cancelled():
                running.result()  # raises what went wrong
            await send(writer, worker.end)
    except (EOFError, ConnectionError):
        return  # nobody is there to be told
    except Exception as error:
        await send(writer, Broken(f"{type(error).__name__}: {error}"))
        raise
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def _at_work(worker: LocalWorker) -> AsyncIterator[LocalWorker]:
    try:
        yield worker
    finally:
        await worker.close()


async def _stop_when_told(reader: asyncio.StreamReader, running: asyncio.Task[None]) -> None:
    """Any message is a stop, and so is none any more."""
    with contextlib.suppress(EOFError, ConnectionError):
        await receive(reader)
    running.cancel()


def main() -> None:
    """The process: its argument is the number of a socket that it has inherited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_loop(serve(socket.socket(fileno=int(sys.argv[1]))))
