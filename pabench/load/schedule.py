"""The schedule: every request of a run, with its absolute start. `pabench.load.plan` draws it.

Open arrivals: `intended_s` is the request's start on the run's clock, whatever the engine does. Closed arrivals: each
user has a queue of its own, and the next request is intended for the end of the last one plus the think time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pabench.engines.base import GenerationRequest
from pabench.load.prompts import Isolation
from pabench.probe import Fork, Ring

_USER_GAP_S = 0.0005  # between the first requests of two users: nobody sends a thousand at once


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One request to come. `intended_s` is None for a closed loop, where the answers set the pace."""

    index: int
    user: int | None
    intended_s: float | None
    request: GenerationRequest
    prompt_tokens: int                 # for words of a model that is not the probe: the number of words
    oracle: Ring | Fork | None = None  # None: nothing to verify
    cancel_after_tokens: int | None = None
    session: int = 0                   # requests of one follow one another
    turn: int = 0                      # 0: the session's first, which arrives as the workload says

    @property
    def name(self) -> str:
        """What records call it."""
        return self.request.request_id or str(self.index)


@dataclass(frozen=True, slots=True)
class Lane:
    """Requests that follow one another: each waits for the end of the one before.

    `first_s`: when the first is due, seconds from the run's start.
    """

    first_s: float
    requests: Sequence[ScheduledRequest]


@dataclass(frozen=True)
class Schedule:
    """All requests of a run, in order, and those that warm the engine up before."""

    requests: tuple[ScheduledRequest, ...]
    warmups: tuple[ScheduledRequest, ...]
    isolation: Isolation    # how a foreign token is told from the request's own
    num_clipped: int        # requests made shorter than the workload says by the engine's context
    num_left_out: int = 0   # turns of sessions whose prompts would have outgrown the context
    notes: tuple[str, ...] = ()  # what a reader of the run must know besides

    def lanes(self) -> list[Lane]:
        """All requests, those together that follow one another: of a user, of a session, or one each; by `first_s`."""
        return put_into_lanes(self.requests)


def put_into_lanes(requests: Sequence[ScheduledRequest], at_least_s: float = 0.0) -> list[Lane]:
    """`Schedule.lanes` of some of its requests. Those that wait for no arrival begin from `at_least_s` on, in turn."""
    def of(request: ScheduledRequest) -> int:
        return request.session if request.user is None else request.user

    lanes, num_waiting = [], 0
    for _, found in groupby(sorted(requests, key=of), key=of):
        together = tuple(found)
        first_s = together[0].intended_s
        if first_s is None:
            first_s = at_least_s + num_waiting * _USER_GAP_S
            num_waiting += 1
        lanes.append(Lane(first_s, together))
    return sorted(lanes, key=lambda lane: lane.first_s)
