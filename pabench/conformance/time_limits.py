"""Code in process that may loop for ever, left by an alarm."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from pabench.conformance.failure import CaseFailed, Failure
from pabench.errors import EngineTimeout

_ALARM_AGAIN_S = 1.0


@contextlib.contextmanager
def case_limited(limit_s: float) -> Iterator[None]:
    """Around a case: EngineTimeout when its time is up. Nothing where an alarm is not to be had, or is set already."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    before = signal.signal(signal.SIGALRM, _out_of_time)
    _alarm_in(limit_s)
    try:
        yield
    except _OutOfTime:
        # Not `from` it: struck between two lines, its traceback has no line number, which pytest cannot show.
        raise EngineTimeout(f"no end within the {limit_s:g} s of a case") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def ended_within(limit_s: float, what: str, meanwhile: Callable[[], str]) -> Iterator[None]:
    """Around a call of an adapter that may loop for ever: its failure, long before the case's time is up.

    Rests on the alarm of the case, and does nothing where there is none or it strikes before. `meanwhile` says what
    waits for the call.
    """
    start, left_s = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0] if hasattr(signal, "setitimer") else 0.0
    if left_s <= limit_s:
        yield
        return
    before = signal.signal(signal.SIGALRM, _call_out_of_time)
    _alarm_in(limit_s)
    try:
        yield
    except _CallOutOfTime:
        raise CaseFailed(Failure(f"{what} ends within {limit_s:g} s", f"it did not, while {meanwhile()}",
                                 hint="an endless loop: what it tries again and again never makes progress")) from None
    finally:
        signal.signal(signal.SIGALRM, before)
        _alarm_in(max(left_s - (time.monotonic() - start), 0.001))


def _alarm_in(seconds: float) -> None:
    """And again from then on: what is raised in a finaliser, or in a callback of the garbage collector, is lost."""
    signal.setitimer(signal.ITIMER_REAL, seconds, _ALARM_AGAIN_S)


class _OutOfTime(BaseException):
    """Not an Exception: neither an adapter nor Hypothesis may take it for one of theirs."""


def _out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise _OutOfTime


class _CallOutOfTime(BaseException):
    """As _OutOfTime, of one call."""


def _call_out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise _CallOutOfTime
