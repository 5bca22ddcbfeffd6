"""Waiting for a moment: never early, all who wait, and nobody after the stop."""

from __future__ import annotations

import asyncio
import time

import pytest

from pabench.load import alarm, run_loop
from pabench.load.alarm import Alarm


@pytest.fixture(params=["kernel", "loop"])
def _timer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to wait; the second is that of systems without timerfd."""
    if request.param == "loop":
        monkeypatch.setattr(alarm.sys, "platform", "darwin")


pytestmark = pytest.mark.usefixtures("_timer")


def test_everyone_is_woken_in_order_and_never_early() -> None:
    woken: list[tuple[float, float]] = []

    async def go() -> None:
        start_s = time.monotonic()
        with Alarm() as waking:
            async def sleep_until(time_s: float) -> None:
                assert not await waking.until(time_s)
                woken.append((time_s - start_s, time.monotonic() - time_s))

            delays_s = [0.03, 0.0101, 0.0, 0.0203, 0.0102, -1.0]
            await asyncio.gather(*(sleep_until(start_s + delay_s) for delay_s in delays_s))

    run_loop(go())
    assert [round(due_s, 4) for due_s, _ in woken] == [0.0, -1.0, 0.0101, 0.0102, 0.0203, 0.03]
    assert all(late_s >= 0 for _, late_s in woken)


def test_the_stop_wakes_all_and_lets_nobody_sleep() -> None:
    async def go() -> None:
        with Alarm() as waking:
            sleepers = [asyncio.create_task(waking.until(time.monotonic() + 60 + i)) for i in range(3)]
            await asyncio.sleep(0.01)
            waking.stop()
            assert await asyncio.wait_for(asyncio.gather(*sleepers), 1) == [True] * 3
            assert await asyncio.wait_for(waking.until(time.monotonic() + 60), 1)

    run_loop(go())


def test_one_that_is_cancelled_leaves_the_others_alone() -> None:
    async def go() -> None:
        with Alarm() as waking:
            due_s = time.monotonic() + 0.03
            first = asyncio.create_task(waking.until(due_s - 0.02))
            second = asyncio.create_task(waking.until(due_s))
            await asyncio.sleep(0)
            first.cancel()
            assert not await asyncio.wait_for(second, 1)
            assert time.monotonic() >= due_s

    run_loop(go())
