"""The workers of a run, together: the load is dealt out, they start at one moment, and what they tell is added up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from pabench.errors import UsageError
from pabench.load.journal import journal_path
from pabench.load.manifest import ClientHealth
from pabench.load.measure import Progress, ProgressState, mean_of
from pabench.load.worker import End, Job, LocalWorker, Worker
from pabench.load.worker_process import ProcessWorker

Result = TypeVar("Result")
_LARGEST = ("loop_lag_p50_ms", "loop_lag_p99_ms", "loop_lag_max_ms", "lateness_p50_ms", "lateness_p99_ms",
            "lateness_max_ms", "cpu_share")  # of ClientHealth


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the workers of a load run: in so many `processes` of this machine (1: the calling one), or, with the `ray`
    address of a cluster, over its machines.
    """

    processes: int = 1
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UsageError(f"got {self.processes} workers, expected 1 or more")

    @property
    def lead_s(self) -> float:
        """From the word to go to the run's start: for it to reach all, and for the bytes of the first requests, which
        are made 50 ms before these are due.
        """
        return 0.5 if self.ray is not None else 0.1

    def workers_for(self, jobs: Sequence[Job]) -> list[Worker]:
        """A worker for each job. Raises UsageError where Ray is asked for and not installed."""
        if self.ray is not None:
            from pabench.load.ray_workers import ray_workers_for

            return ray_workers_for(jobs, self.ray)
        if len(jobs) == 1:
            return [LocalWorker(jobs[0])]
        return [ProcessWorker(job) for job in jobs]


ONE_PROCESS = Placement()


def split_job(job: Job, count: int) -> list[Job]:
    """`job`, whose `journal` is the run's folder, in up to `count` parts: lane by lane in turn, so that each has its
    share at any time.
    """
    parts = min(count, len(job.lanes))
    return [replace(job, lanes=job.lanes[part::parts], warmups=job.warmups[part::parts],
                    journal=journal_path(job.journal, str(part)))
            for part in range(parts)]


class WorkerPool:
    """Workers with their jobs. An async context manager."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._states: dict[int, ProgressState] = {}

    async def __aenter__(self) -> WorkerPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let them go; their journals are in the run's folder then. Where one fails the others are waited for."""
        ended = await asyncio.gather(*(worker.close() for worker in self._workers), return_exceptions=True)
        for one in ended:
            if one is not None:
                raise one

    async def prepare(self) -> list[str]:
        """Start them and warm the engine up; notes on what went wrong there."""
        notes = await _together([worker.prepare() for worker in self._workers])
        return [note for of_one in notes for note in of_one]

    async def run(self, start_s: float, progress: Progress) -> None:
        """Do all jobs, the run's zero being `start_s`. When this is cancelled, or one fails, all end early."""
        def told(number: int, state: ProgressState) -> None:
            self._states[number] = state
            progress(added_up(self._states.values()))

        await _together([worker.run(start_s, partial(told, number)) for number, worker in enumerate(self._workers)])

    @property
    def end(self) -> End:
        """How the jobs ended, together."""
        ends = [worker.end for worker in self._workers if worker.end is not None]
        return End(
            failure=next((end.failure for end in ends if end.failure), None),
            unsent_kind=next((end.unsent_kind for end in ends if end.unsent_kind), None),
            unwritable=next((end.unwritable for end in ends if end.unwritable), None),
            left=[one for end in ends for one in end.left], health=worst([end.health for end in ends]),
            num_sent_again=sum(end.num_sent_again for end in ends),
        )


async def _together(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All at once. When one fails, or this is cancelled, the others are cancelled and waited for."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def added_up(states: Iterable[ProgressState]) -> ProgressState:
    """How far all are."""
    known = list(states)
    return ProgressState(
        done=sum(state.done for state in known), total=sum(state.total for state in known),
        in_flight=sum(state.in_flight for state in known), output_tokens=sum(state.output_tokens for state in known),
        errors=sum(state.errors for state in known), elapsed_s=max(state.elapsed_s for state in known),
        ttft_s=mean_of(state.ttft_s for state in known), itl_s=mean_of(state.itl_s for state in known),
    )


def worst(healths: Sequence[ClientHealth]) -> ClientHealth:
    """The largest lag, lateness and CPU share of any of them, each figure by itself; scrapes together."""
    told = [health.loop_lag_percentiles_ms for health in healths if health.loop_lag_percentiles_ms]
    return ClientHealth(
        loop_lag_percentiles_ms=[max(values) for values in zip(*told, strict=True)],
        kernel_stamps=all(health.kernel_stamps for health in healths) and bool(healths),
        scrapes=sum(health.scrapes for health in healths),
        failed_scrapes=sum(health.failed_scrapes for health in healths),
        **{name: max((value for health in healths if (value := getattr(health, name)) is not None), default=None)
           for name in _LARGEST},
    )
