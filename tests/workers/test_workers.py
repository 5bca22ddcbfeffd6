"""A load carried by several processes is the load that one would have carried."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pabench.analysis import load_run
from pabench.errors import UsageError
from pabench.load import Manifest, Placement, run_loop, run_workload
from pabench.load.journal import journals_in
from pabench.load.manifest import ClientHealth
from pabench.load.measure import Progress, ProgressState
from pabench.load.pool import WorkerPool, split_job, worst
from pabench.load.ray_workers import relate_clocks
from pabench.load.schedule import Lane
from pabench.load.worker import Job
from pabench.load.worker_process import WorkerDied
from pabench.stub import StubOptions, StubServer
from tests.load.support import Examined, broken_off, checked, workload
from tests.load.test_sharing import planned

SESSIONS = {"turns": {"law": "fixed", "tokens": 3}, "turn_tokens": {"law": "fixed", "tokens": 4}}


def carried(folder: Path, processes: int, **fields: object) -> Manifest:
    """By so many processes, against the stub."""
    async def go() -> Manifest:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            return await run_workload(Examined(), workload(**fields), folder, url=server.url, label="x",
                                      placement=Placement(processes))

    return run_loop(go())


@pytest.mark.parametrize("fields", [
    {"num_requests": 24, "arrivals": {"kind": "closed", "users": 6}},
    {"num_requests": 24, "arrivals": {"kind": "poisson", "rate_per_s": 40}, "warmup_requests": 4},
    {"num_requests": 24, "arrivals": {"kind": "poisson", "rate_per_s": 20}, "session": SESSIONS},
], ids=["closed", "open", "sessions"])
def test_every_request_is_sent_once_on_time_and_verified(tmp_path: Path, fields: dict[str, object]) -> None:
    manifest = carried(tmp_path / "run", 3, **fields)
    run = checked(tmp_path / "run", manifest)
    assert (manifest.status, manifest.workers, manifest.outcomes["ok"]) == ("complete", 3, 24)
    assert (run.requests["verified_tokens"] == 8).all()
    assert run.requests["index"].tolist() == list(range(24))
    late = run.requests["sent_s"] - run.requests["intended_s"]
    assert (late >= 0).all()
    assert np.median(late) < 0.5  # one start for all
    assert manifest.client.kernel_stamps == (sys.platform == "linux")
    assert manifest.client.cpu_share is not None
    assert not journals_in(tmp_path / "run")
    alone = carried(tmp_path / "alone", 1, **fields)
    assert alone.schedule_digest == manifest.schedule_digest
    if "session" not in fields and run.manifest.workload.users is None:
        assert run.requests["intended_s"].tolist() == load_run(tmp_path / "alone").requests["intended_s"].tolist()


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_lanes_are_dealt_out_whole_and_each_once(workers: int, requests: int, seed: int) -> None:
    load = workload(num_requests=requests, arrivals={"kind": "poisson", "rate_per_s": 9}, session=SESSIONS,
                    warmup_requests=5)
    schedule = planned(load, seed)
    jobs = split_job(Job("", load, "openai", "m", schedule.lanes(), schedule.warmups, Path("run")), workers)
    dealt = [request.index for job in jobs for lane in job.lanes for request in lane.requests]
    assert sorted(dealt) == [request.index for request in schedule.requests]
    for job in jobs:
        assert [lane.first_s for lane in job.lanes] == sorted(lane.first_s for lane in job.lanes)
        for lane in job.lanes:
            assert len({request.session for request in lane.requests}) == 1
    assert sum(len(job.warmups) for job in jobs) == 5
    assert len({job.journal for job in jobs}) == len(jobs) == min(workers, len(schedule.lanes()))


def test_the_key_is_in_no_command_line_and_in_no_text() -> None:
    job = Job("", workload(), "openai", "m", [Lane(0.0, ())], (), Path("run"), api_key="s3cret")
    assert "s3cret" not in repr(job)


def children() -> set[int]:
    """Worker processes of this one."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words, line = path.read_text().rpartition(")")[2].split(), path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(words[1]) == os.getpid() and b"worker_process" in line:
            found.add(int(path.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_worker_that_is_killed_ends_the_run_and_keeps_what_was_answered(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(state: ProgressState) -> None:
        if state.done >= 12 and not killed:
            killed.append(min(children()))
            os.kill(killed[0], signal.SIGKILL)

    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            await run_workload(Examined(), workload(num_requests=400, arrivals={"kind": "closed", "users": 4}),
                               tmp_path / "run", url=server.url, label="x", progress=kill_one, placement=Placement(2))

    begin = time.monotonic()
    with pytest.raises(WorkerDied, match="ended with signal 9"):
        run_loop(go())
    assert time.monotonic() - begin < 15
    assert not children()
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "failed"
    assert run.manifest.failure is not None
    assert "signal 9" in run.manifest.failure
    assert run.manifest.outcomes["ok"] >= 10
    assert run.manifest.outcomes["unsent"] > 100
    assert sum(run.manifest.outcomes.values()) == 400


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_an_interrupted_run_stops_its_workers_and_balances_the_books(tmp_path: Path) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            load = workload(num_requests=2000, arrivals={"kind": "closed", "users": 4})
            await broken_off(lambda note: run_workload(Examined(), load, tmp_path / "run", url=server.url, label="x",
                                                       progress=note, placement=Placement(2)), 12)

    run_loop(go())
    assert not children()
    run = load_run(tmp_path / "run")
    outcomes = run.manifest.outcomes
    assert run.manifest.status == "interrupted"
    assert outcomes["ok"] >= 12
    assert 1 <= outcomes["aborted"] <= 4
    assert sum(outcomes.values()) == 2000


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
def test_interrupted_while_its_workers_start_it_leaves_none_behind(tmp_path: Path, after_s: float) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            running = asyncio.create_task(run_workload(Examined(), workload(), tmp_path / "run", url=server.url,
                                                       label="x", placement=Placement(2)))
            await asyncio.sleep(after_s)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    run_loop(go())
    assert not children()
    assert not (tmp_path / "run").exists()


def test_the_worst_of_each_figure_is_told() -> None:
    a = ClientHealth(loop_lag_percentiles_ms=[0.0, 5.0], cpu_share=0.2, kernel_stamps=True, scrapes=3)
    b = ClientHealth(loop_lag_percentiles_ms=[1.0, 2.0], cpu_share=0.5, kernel_stamps=True, lateness_max_ms=7.0)
    both = worst([a, b])
    assert both.loop_lag_percentiles_ms == [1.0, 5.0]
    assert (both.cpu_share, both.lateness_max_ms, both.scrapes, both.kernel_stamps) == (0.5, 7.0, 3, True)
    assert not worst([a, ClientHealth()]).kernel_stamps


def test_no_worker_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="got 0 workers, expected 1 or more"):
        Placement(0)


def test_clocks_are_related_by_the_exchange_that_came_back_soonest() -> None:
    delays = [0.004, 0.03, 0.0001, 0.02]

    async def ask() -> float:
        delay_s = delays[0]
        delays.append(delays.pop(0))
        await asyncio.sleep(delay_s)           # on the way there only: the worst case
        return time.monotonic() + 1000.0

    offset_s, error_s = asyncio.run(relate_clocks(ask))
    assert error_s < 0.004
    assert abs(offset_s - 1000.0) <= error_s


def test_a_clock_is_asked_until_one_exchange_was_quick_enough() -> None:
    asked = 0

    async def ask() -> float:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.02 if asked < 30 else 0)
        return time.monotonic() + 1000.0

    _, error_s = asyncio.run(relate_clocks(ask))
    assert asked == 30
    assert error_s < 0.005


class Closing:
    """A worker that is closed, and no more. Fails with `error` after `takes_s`, if there is one."""

    end = None

    def __init__(self, takes_s: float, error: Exception | None = None) -> None:
        self.takes_s, self.error, self.closed = takes_s, error, False

    async def prepare(self) -> list[str]:
        return []

    async def run(self, start_s: float, progress: Progress) -> None: ...

    async def close(self) -> None:
        await asyncio.sleep(self.takes_s)
        self.closed = True
        if self.error is not None:
            raise self.error


def test_a_worker_that_cannot_be_closed_leaves_none_open() -> None:
    workers = [Closing(0.05), Closing(0.02, OSError("first")), Closing(0.0, OSError("sooner, and behind")),
               Closing(0.05)]

    async def go() -> None:
        with pytest.raises(OSError, match="first"):
            await WorkerPool(workers).close()
        assert [worker.closed for worker in workers] == [True] * 4

    asyncio.run(go())
