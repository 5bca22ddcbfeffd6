"""Deadlines of single tokens, for a reader at a steady pace ("fluidity", Etalon: arXiv 2407.07000).

The first token of a sample is due `ttft_ms` after the intended start, or whenever it comes where no such bound is
given; each later one `deadline_ms` after the one before was due or, where that one came late, after it came. So what
comes early is in store for what comes late, and after a stall the reader goes on from where it ended.

A late token has missed its own deadline and one more for each `deadline_ms` that it was late: those that went by.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pabench.analysis.latency import SLICE, token_times


class Deadlines(NamedTuple):
    """Of each request, over all its samples: `[num_requests]` each."""

    missed: NDArray[np.int64]
    total: NDArray[np.int64]


def deadlines(requests: pd.DataFrame, deadline_ms: float, ttft_ms: float | None = None) -> Deadlines:
    """Deadlines that the tokens of `requests` (columns of REQUEST_SCHEMA) missed, and how many they had."""
    parts = [_of_slice(requests[at:at + SLICE], deadline_ms / 1e3, None if ttft_ms is None else ttft_ms / 1e3)
             for at in range(0, len(requests), SLICE)]
    nothing = np.empty(0, dtype=np.int64)
    return Deadlines(*(np.concatenate([nothing, *found]) for found in zip(*parts, strict=True)) if parts
                     else (nothing, nothing))


def miss_rate(found: Deadlines) -> float | None:
    """Share of all deadlines that were missed, 0..1; None where there was none."""
    total = int(found.total.sum())
    return int(found.missed.sum()) / total if total else None


def _of_slice(requests: pd.DataFrame, pace_s: float, first_s: float | None) -> Deadlines:
    lengths = np.asarray([len(row) for row in requests["token_times_s"]], dtype=np.int64)
    owner, times = np.repeat(np.arange(len(requests)), lengths), token_times(requests)
    choices = np.concatenate([np.empty(0, dtype=np.int64), *requests["token_choices"]])
    order = np.lexsort((times, choices, owner))
    owner, times, choices = owner[order], times[order], choices[order]
    begins = (np.diff(owner, prepend=-1) != 0) | (np.diff(choices, prepend=-1) != 0)
    sample = np.cumsum(begins) - 1
    place = np.arange(len(times)) - np.flatnonzero(begins)[sample]
    # By a clock that stands still for a reader at pace: token i is due at the latest of the first token's deadline and
    # of all arrivals before i.
    by_pace = times - place * pace_s
    first_due = times if first_s is None else requests["intended_s"].to_numpy(dtype=np.float64)[owner] + first_s
    before = np.where(begins, first_due, np.roll(by_pace, 1))
    due = pd.Series(before).groupby(sample).cummax().to_numpy()
    late = by_pace - due > 1e-9  # seconds: far below any clock's step, far above what rounding does
    went_by = np.where(late, np.floor((by_pace - due) / pace_s), 0).astype(np.int64)
    has_one = np.ones(len(times), dtype=bool) if first_s is not None else ~begins
    missed, extra, own = (np.bincount(owner, weights=each, minlength=len(requests)).astype(np.int64)
                          for each in (late + went_by, went_by, has_one))
    return Deadlines(missed, own + extra)
