"""A termination ends a load, wherever it strikes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator

import pytest

from pabench.cli import _end_as_on_ctrl_c
from pabench.load import run_loop

Work = Callable[[list[str]], Coroutine[None, None, None]]


async def in_a_callback(reached: list[str]) -> None:
    """A parser written in C keeps what its callbacks raise to itself."""
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    await asyncio.sleep(1)
    reached.append("the end")


async def where_nothing_is_awaited_any_more(reached: list[str]) -> None:
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)


@pytest.fixture(params=[signal.SIG_IGN, signal.default_int_handler], ids=["background", "foreground"])
def program(request: pytest.FixtureRequest) -> Iterator[None]:
    """Signals are handled as `pabench` does, started so by a shell."""
    before = signal.signal(signal.SIGINT, request.param), signal.signal(signal.SIGTERM, _end_as_on_ctrl_c)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("work", [in_a_callback, where_nothing_is_awaited_any_more])
def test_a_termination_is_not_swallowed(work: Work) -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_loop(work(reached))
    assert not reached
    assert signal.getsignal(signal.SIGTERM) is _end_as_on_ctrl_c
