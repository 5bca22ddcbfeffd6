"""Looking for a case that breaks a property, and making it small: Hypothesis, bounded in time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, reject, settings
from hypothesis.strategies import SearchStrategy

from pabench.errors import EngineError, RequirementFailed

__all__ = ["reject", "search"]

T = TypeVar("T")


class _Over(BaseException):
    """Not an Exception: Hypothesis would take it for a failure, and try to shrink it."""


def search(
    strategy: SearchStrategy[T], ask: Callable[[T], None], *, examples: int, seed: int, shrink_s: float = 60.0
) -> T | None:
    """The smallest case found for which `ask` raises RequirementFailed; None: `examples` of them do not.

    A case that `ask` rejects does not count. Once one has failed, smaller ones are looked for during `shrink_s` seconds
    at most. An EngineError ends the search at once, and is raised: what has died is not to be killed a hundred times.
    """
    failing: list[T] = []
    ended: list[EngineError] = []
    end = [float("inf")]

    @hypothesis.seed(seed)
    @settings(max_examples=examples, deadline=None, database=None, print_blob=False, verbosity=Verbosity.quiet,
              phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
              report_multiple_bugs=False)
    @hypothesis.given(strategy)
    def look(case: T) -> None:
        if time.monotonic() > end[0]:
            raise _Over  # or Hypothesis would go on for minutes
        try:
            ask(case)
        except RequirementFailed:
            failing.append(case)
            end[0] = min(end[0], time.monotonic() + shrink_s)
            raise
        except EngineError as error:
            ended.append(error)
            raise _Over from error

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            look()
    except _Over:
        if ended:
            raise ended[0] from None
        return failing[-1]
    except hypothesis.errors.Unsatisfiable:
        return None  # `ask` rejects them all
    except (RequirementFailed, hypothesis.errors.Flaky):
        return failing[-1]
    return None
