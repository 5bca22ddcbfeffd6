"""The steady window: the part of a run in which the load was as the workload says. Throughput is taken from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from pabench.load.manifest import Resumption
from pabench.load.records import RequestRecord

BUSY_SHARE = 0.9  # of the users


def steady_window(
    records: Sequence[RequestRecord], resumed: Sequence[Resumption] = (), later_turns: Collection[int] = ()
) -> tuple[float, float] | None:
    """(start, end) in seconds from the start of the run; None when there was no steady part.

    `later_turns`: indices of requests that did not arrive by themselves, but followed an answer.
    A run that was broken off and `resumed` has a window in each part: it is the longest of them.

    Closed arrivals: from when every user has sent its first request and the first token has come, to when fewer than
    90 % of the users still have work. Open arrivals: from the median time that a request takes after the first one
    (the engine fills up), or half the arrivals where that is sooner, to the last arrival's intended start, or to where
    the first came of the requests in flight at a break: their tokens of before it are gone, for they are sent again.
    """
    edges = (-math.inf, *(one.at_s for one in resumed), math.inf)
    known_s = (*(math.inf if one.again_s is None else one.again_s for one in resumed), math.inf)
    parts = ([r for r in records if r.sent_s is not None and since <= r.sent_s < until]
             for since, until in pairwise(edges))
    windows = [window for part, until_s in zip(parts, known_s, strict=True)
               if (window := _window(part, later_turns, until_s)) is not None]
    return max(windows, key=lambda window: window[1] - window[0], default=None)


def _window(
    sent: Sequence[RequestRecord], later_turns: Collection[int], known_s: float
) -> tuple[float, float] | None:
    """Of one part, whose tokens are all known until `known_s`."""
    first_tokens = [r.first_s for r in sent if r.first_s is not None]
    if not first_tokens:  # of answers that came whole
        first_tokens = [r.end_s for r in sent if r.outcome == "ok" and r.end_s is not None]
    if not first_tokens:
        return None
    closed = sent[0].user is not None
    start, end = (_closed(sent, min(first_tokens)) if closed else
                  _open(sent, min(first_tokens), later_turns, known_s))
    return (start, end) if end > start else None


def _closed(sent: Sequence[RequestRecord], first_token_s: float) -> tuple[float, float]:
    first_sent: dict[int, float] = {}
    last_end: dict[int, float] = {}
    for record in sent:
        if record.user is None or record.sent_s is None:
            continue
        first_sent[record.user] = min(first_sent.get(record.user, math.inf), record.sent_s)
        end_s = record.end_s if record.end_s is not None else record.sent_s
        last_end[record.user] = max(last_end.get(record.user, 0.0), end_s)
    ends = sorted(last_end.values())
    may_be_done = len(ends) - math.ceil(BUSY_SHARE * len(ends))
    return max(first_token_s, *first_sent.values()), ends[may_be_done]


def _open(
    sent: Sequence[RequestRecord], first_token_s: float, later_turns: Collection[int], known_s: float
) -> tuple[float, float]:
    arrivals_s = [r.intended_s for r in sent if r.index not in later_turns]
    if not arrivals_s:  # of a part that was resumed when all sessions had begun
        return first_token_s, first_token_s
    begin, end = min(arrivals_s), min(max(arrivals_s), known_s)
    took = [r.end_s - r.sent_s for r in sent if r.outcome == "ok" and r.end_s is not None and r.sent_s is not None]
    ramp = min(float(np.median(took)), (end - begin) / 2) if took else 0.0
    return max(begin + ramp, first_token_s), end
