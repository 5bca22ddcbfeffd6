"""A termination ends a load, wherever it strikes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import pytest

from pabench.cli import _end_as_on_ctrl_c
from pabench.load import run_loop


@pytest.mark.parametrize("interrupts", [signal.SIG_IGN, signal.default_int_handler], ids=["background", "foreground"])
def test_a_termination_is_not_swallowed(interrupts: signal.Handlers) -> None:
    """A parser written in C keeps what its callbacks raise to itself."""
    reached = []

    async def work() -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        await asyncio.sleep(1)
        reached.append("the end")

    before = signal.signal(signal.SIGINT, interrupts), signal.signal(signal.SIGTERM, _end_as_on_ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_loop(work())
        assert signal.getsignal(signal.SIGTERM) is _end_as_on_ctrl_c
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert not reached


@pytest.mark.parametrize("interrupts", [signal.SIG_IGN, signal.default_int_handler], ids=["background", "foreground"])
def test_nor_is_one_that_strikes_at_the_end(interrupts: signal.Handlers) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return "nothing is awaited here"

    before = signal.signal(signal.SIGINT, interrupts), signal.signal(signal.SIGTERM, _end_as_on_ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_loop(work())
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
