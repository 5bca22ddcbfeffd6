"""A worker carries its part of a run: it sends, reads, and keeps a journal. It may be this process, or another.

    LocalWorker      on this process's event loop
    ProcessWorker    in a process of its own (`worker_process.py`)
    RayWorker        in a process on another machine (`ray_workers.py`)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pabench.engines import dialect as find_dialect
from pabench.engines.cleaning import without_key
from pabench.load.client import LoadClient, PreparedRequest, prepare
from pabench.load.connection import Exchange
from pabench.load.files import make_room
from pabench.load.journal import Journal
from pabench.load.line import clock
from pabench.load.manifest import ClientHealth
from pabench.load.measure import Measurement, Progress, no_collections
from pabench.load.schedule import Lane, ScheduledRequest
from pabench.load.workload import Workload


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker has to do. `until_s`: when sending ends, seconds from the run's start."""

    url: str
    workload: Workload
    dialect: str
    model: str
    lanes: Sequence[Lane]
    warmups: Sequence[ScheduledRequest]
    journal: Path
    until_s: float = float("inf")
    api_key: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class End:
    """How a worker's part ended; what became of its requests is in its journal, but for those `left`."""

    failure: str | None = None        # why it ended early
    unsent_kind: str | None = None    # why requests were not sent
    unwritable: str | None = None     # why the journal takes no more
    left: list[Exchange] = field(default_factory=list)
    health: ClientHealth = field(default_factory=ClientHealth)
    num_sent_again: int = 0


class Worker(Protocol):
    """One that does a job. `end` is there once `run` has ended, however it did."""

    end: End | None

    async def prepare(self) -> list[str]:
        """Connect and warm the engine up; notes on what went wrong there."""
        ...

    async def run(self, start_s: float, progress: Progress) -> None:
        """Do the job, from `start_s` on this process's `clock` on. Cancelling it ends the job early."""
        ...

    async def close(self) -> None:
        """Let go of connections and processes. The journal is in its place then."""
        ...


class LocalWorker:
    """On this event loop."""

    def __init__(self, job: Job) -> None:
        self.end: End | None = None
        self._job = job
        self._dialect = find_dialect(job.dialect)
        self._client = LoadClient(job.url, timeout_s=job.workload.timeout_s, api_key=job.api_key)
        self._without_collections = contextlib.ExitStack()

    async def prepare(self) -> list[str]:
        """See Worker. The warm-up requests are sent all at once."""
        make_room(len(self._job.lanes))
        with contextlib.suppress(OSError):  # the requests will tell
            await self._client.resolve()
        exchanges = await asyncio.gather(*(self._client.send(self._written(one), clock()) for one in self._job.warmups))
        self._without_collections.enter_context(no_collections())  # the one that comes first is slow: before the start
        failed = [exchange for exchange in exchanges if exchange.fault is not None or exchange.status != 200]
        if not failed:
            return []
        why = failed[0].fault_text or failed[0].fault or f"HTTP {failed[0].status}"
        return [f"{len(failed)} of {len(exchanges)} warm-up requests failed: {without_key(why, self._job.api_key)}"]

    async def run(self, start_s: float, progress: Progress | None) -> None:
        """See Worker. Raises RecordsUnwritable where the journal cannot be begun."""
        job = self._job
        self._client.reset()
        journal = Journal(job.journal, start_s, job.api_key)
        run = Measurement(job.url, job.workload, job.lanes, self._written, self._client, journal, start_s=start_s,
                          until_s=job.until_s)
        try:
            await run.run(progress)
        finally:
            journal.close()
            health = run.lag.health()
            health.kernel_stamps = self._client.kernel_stamps
            self.end = End(run.failure, run.unsent_kind, None if journal.error is None else str(journal.error),
                           journal.left, health, self._client.num_sent_again)

    async def close(self) -> None:
        """See Worker."""
        self._without_collections.close()
        self._client.close()

    def _written(self, request: ScheduledRequest) -> PreparedRequest:
        return prepare(request, self._dialect, self._job.model)


