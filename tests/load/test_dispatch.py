"""Requests leave when the schedule says, whatever became of those before."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from pabench.engines import dialect
from pabench.load.client import LoadClient, PreparedRequest, prepare
from pabench.load.connection import Exchange
from pabench.load.journal import Journal, Journaled, journal_path, journals_in
from pabench.load.line import clock
from pabench.load.measure import Measurement, Progress
from pabench.load.planning import plan
from pabench.load.schedule import Lane, ScheduledRequest
from pabench.load.worker import Job, LocalWorker
from pabench.load.workload import Workload
from tests.load.support import Examined, workload


class Line(LoadClient):
    """A client whose requests take `takes_s` and never see a network."""

    def __init__(self, takes_s: float) -> None:
        super().__init__("http://nowhere", timeout_s=1.0)
        self.takes_s = takes_s

    async def carry(self, request: PreparedRequest, exchange: Exchange) -> None:
        exchange.sent_s = clock()
        exchange.status = 200
        await asyncio.sleep(self.takes_s)
        exchange.end_s = clock()


def written(request: ScheduledRequest) -> PreparedRequest:
    return prepare(request, dialect("openai"), "stub")


@dataclass
class Dispatched:
    """What was sent, times from the start, and why what was not."""

    exchanges: dict[int, Exchange]
    unsent_kind: str | None


async def dispatch(load: Workload, client: LoadClient, folder: Path, progress: Progress | None = None) -> Dispatched:
    examined, start_s = Examined(), clock()
    journal = Journal(journal_path(folder, "0"), start_s)
    try:
        run = Measurement("http://nowhere", load, plan(load, 0, examined.facts, examined.probe, "p").lanes(), written,
                          client, journal, start_s=start_s, until_s=load.duration_s or float("inf"))
        await run.run(progress)
    finally:
        journal.close()
    with Journaled(journals_in(folder), journal.left) as found:
        return Dispatched(found.exchanges, run.unsent_kind)


def test_an_absolute_schedule_does_not_fall_behind(tmp_path: Path) -> None:
    """A chain of sleeps, each a millisecond too long, would be a second behind at the end."""
    load = workload(arrivals={"kind": "constant", "rate_per_s": 1000}, num_requests=1000)
    run = asyncio.run(dispatch(load, Line(0.0), tmp_path))
    late = [exchange.sent_s - exchange.intended_s for exchange in run.exchanges.values() if exchange.sent_s]
    assert len(late) == 1000
    assert min(late) >= 0  # never early
    assert min(late[-100:]) < 0.3


def test_open_arrivals_do_not_wait_for_answers(tmp_path: Path) -> None:
    load = workload(arrivals={"kind": "constant", "rate_per_s": 50}, num_requests=20)
    run = asyncio.run(dispatch(load, Line(0.5), tmp_path))
    sent = [exchange.sent_s for exchange in run.exchanges.values() if exchange.sent_s]
    assert max(sent) < 0.45  # all of them before the first answer


def test_a_user_sends_again_when_the_answer_has_come_and_it_has_thought(tmp_path: Path) -> None:
    load = workload(arrivals={"kind": "closed", "users": 2, "think_s": 0.05}, num_requests=6)
    run = asyncio.run(dispatch(load, Line(0.02), tmp_path))
    ordered = [run.exchanges[index] for index in (0, 2, 4)]  # equal lengths: users take turns
    for before, after in pairwise(ordered):
        assert after.intended_s == pytest.approx((before.end_s or 0) + 0.05)
        assert after.sent_s is not None
        assert after.sent_s >= after.intended_s


def test_users_come_one_after_the_other_and_not_all_at_once(tmp_path: Path) -> None:
    load = workload(arrivals={"kind": "closed", "users": 20}, num_requests=20)
    run = asyncio.run(dispatch(load, Line(0.0), tmp_path))
    starts = sorted(exchange.intended_s for exchange in run.exchanges.values())
    assert starts == pytest.approx([number * 0.0005 for number in range(20)])


def test_the_duration_ends_the_sending_and_not_what_is_in_flight(tmp_path: Path) -> None:
    load = workload(arrivals={"kind": "closed", "users": 1}, num_requests=50, duration_s=0.2)
    run = asyncio.run(dispatch(load, Line(0.05), tmp_path))
    assert 2 <= len(run.exchanges) <= 5
    assert run.unsent_kind == "duration"
    assert all(exchange.fault is None for exchange in run.exchanges.values())


def test_a_fault_of_the_progress_callback_is_not_swallowed(tmp_path: Path) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(dispatch(workload(num_requests=2), Line(0.05), tmp_path, broken))


def test_the_loop_lag_sees_a_stall_and_counts_every_tick_of_it() -> None:
    import time

    from pabench.load.lag import LoopLag

    async def go() -> list[float]:
        lag = LoopLag()
        watching = asyncio.create_task(lag.watch())
        await asyncio.sleep(0.05)
        time.sleep(0.2)  # what a client must never do
        await asyncio.sleep(0.05)
        watching.cancel()
        await asyncio.wait({watching})
        lag.stop()
        return lag.lags_s

    lags = asyncio.run(go())
    assert max(lags) > 0.17
    assert sum(lag > 0.01 for lag in lags) >= 15


def open_files_room() -> int:
    """Size of this process's table of open files."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("FDSize:")]
    return int(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the table is Linux's")
def test_the_table_of_open_files_has_grown_before_the_start(tmp_path: Path) -> None:
    """Growing takes 10 ms and more, in which nothing is sent or read."""
    users = open_files_room() + 1000
    job = Job("http://localhost:9", workload(), "openai", "stub", [Lane(0.0, ())] * users, (), tmp_path)

    async def prepare_one() -> None:
        worker = LocalWorker(job)
        assert await worker.prepare() == []
        await worker.close()

    asyncio.run(prepare_one())
    assert open_files_room() >= users
