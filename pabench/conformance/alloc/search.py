"""Looking for a trace that breaks a property, and making it as short as it can be.

Hypothesis draws the traces and shrinks; then operations are left out one by one, for as long as it still breaks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.strategies import SearchStrategy

from pabench.errors import EngineError, RequirementFailed

Trace = dict[str, Any]
_MAX_TRIES = 300


class _Over(BaseException):
    """Not an Exception: Hypothesis would take it for a failure, and try to shrink it."""


def search(strategy: SearchStrategy[Trace], play: Callable[[Trace], None], *, traces: int, seed: int) -> Trace | None:
    """The shortest trace found for which `play` raises RequirementFailed; None: `traces` of them do not.

    An EngineError ends the search at once, and is raised: a manager that has died is not to be killed a hundred times.
    """
    failing: list[Trace] = []
    ended: list[EngineError] = []

    @hypothesis.seed(seed)
    @settings(max_examples=traces, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
              phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet)
    @hypothesis.given(strategy)
    def look(trace: Trace) -> None:
        try:
            play(trace)
        except RequirementFailed:
            failing.append(trace)
            raise
        except EngineError as error:
            ended.append(error)
            raise _Over from error

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            look()
    except _Over:
        raise ended[0] from None
    except (RequirementFailed, hypothesis.errors.Flaky):
        return shortened(failing[-1], play)
    return None


def shortened(trace: Trace, play: Callable[[Trace], None]) -> Trace:
    """`trace` without the operations that it breaks without."""
    operations, tries = list(trace["operations"]), 0
    width = max(len(operations) // 2, 1)
    while width and tries < _MAX_TRIES:
        at = 0
        while at < len(operations) and tries < _MAX_TRIES:
            shorter = operations[:at] + operations[at + width :]
            tries += 1
            if _breaks({**trace, "operations": shorter}, play):
                operations = shorter
            else:
                at += width
        width //= 2
    return {**trace, "operations": operations}


def _breaks(trace: Trace, play: Callable[[Trace], None]) -> bool:
    try:
        play(trace)
    except RequirementFailed:
        return True
    return False
