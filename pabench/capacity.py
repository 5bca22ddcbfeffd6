"""Capacity: the highest rate of arrivals at which nearly all requests are answered in time, found by a search.

A rate is tried by runs of its own; no two runs of a search have one seed, else later rates would find the prompts of
earlier ones in the prefix cache. It is inside when the share of requests in time is surely high enough (the whole of
Wilson's interval is), outside when it surely is not. What is neither is tried again, and counted together. The search
doubles the rate until one is outside, then halves the gap between the two, on a logarithmic scale, until it is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, inf, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from pabench.analysis.slo import SLO, percent
from pabench.errors import UsageError
from pabench.files import wrong_fields
from pabench.load.records import write_atomic

CAPACITY_FILE = "capacity.json"
CONFIDENCE = 0.95
_WORDS = ("conclusion", "in_time")  # in the file for who reads it alone

Measure = Callable[[float, int], "Attained"]  # rate in requests/s, runs so far -> what came of it


@dataclass(frozen=True, slots=True)
class Attained:
    """Requests of one rate, and those of them that were in time."""

    inside: int
    total: int

    @property
    def share(self) -> float:
        """In time, 0..1; 0 of none."""
        return self.inside / self.total if self.total else 0.0

    def __add__(self, other: Attained) -> Attained:
        return Attained(self.inside + other.inside, self.total + other.total)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Wilson's interval of the share in time (Wilson 1927), for requests that do not depend on one another."""
        if self.total == 0:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        share, n = self.share, self.total
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        # Of none, or all, in time an end is 0, or 1, but for rounding.
        return 0.0 if self.inside == 0 else middle - half, 1.0 if self.inside == n else middle + half


@dataclass(frozen=True, slots=True)
class Tried:
    """One rate and the verdict on it."""

    rate_per_s: float
    attained: Attained
    verdict: Literal["inside", "outside", "undecided"]
    low: float     # of the share in time
    high: float
    enough: bool   # whether the share itself, whatever its interval, is high enough: where the search goes on


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search came to. Rates in requests/s; None: none was found on that side."""

    inside: float | None    # the highest rate that is surely inside
    outside: float | None   # the lowest above it that is surely outside
    tried: tuple[Tried, ...]
    unit: str = "req/s"     # of the rates: sessions/s where a workload has sessions

    @property
    def text(self) -> str:
        """In words."""
        if self.inside is None and self.outside is None:
            return "undecided at every rate that was tried: raise --duration-s or --tries"
        unit = self.unit
        if self.inside is None:
            undecided = any(each.rate_per_s < (self.outside or 0.0) for each in self.tried)
            remedy = "undecided below it: raise --duration-s or --tries" if undecided else "lower --from-rate"
            return f"below {self.outside:.3g} {unit}, and surely inside at no rate that was tried: {remedy}"
        if self.outside is None and self.inside < max(each.rate_per_s for each in self.tried):
            return f"at least {self.inside:.3g} {unit}; undecided above it: raise --duration-s or --tries"
        if self.outside is None:
            return f"above {self.inside:.3g} {unit}, the highest rate that was tried: raise --to-rate"
        return f"{self.inside:.3g} {unit}; {self.outside:.3g} {unit} is too much"

    @property
    def bounds(self) -> str:
        """Of a search that did not come to its end: what it has shown, and no advice."""
        shown = [f"at least {self.inside:.3g} {self.unit}"] if self.inside is not None else []
        shown += [f"below {self.outside:.3g} {self.unit}"] if self.outside is not None else []
        return ", ".join(shown) or "nothing decided"


def search_capacity(
    measure: Measure, slo: SLO, *, from_rate: float, to_rate: float, precision: float = 0.1, tries: int = 3,
    confidence: float = CONFIDENCE, progress: Callable[[Tried], None] = lambda tried: None,
) -> Capacity:
    """The capacity between two rates, to a relative `precision`. A rate is tried at most `tries` times."""
    require_range(from_rate=from_rate, to_rate=to_rate, precision=precision, tries=tries)
    found: list[Tried] = []
    numbers = count()
    for rate in _rates(found, from_rate, to_rate, precision):
        found.append(_try(lambda at: measure(at, next(numbers)), rate, slo, tries, confidence))
        progress(found[-1])
    return conclusion(found)


def require_range(*, from_rate: float, to_rate: float, precision: float, tries: int) -> None:
    """Raise UsageError where there is nothing to search."""
    if not 0 < from_rate < to_rate < inf or not 0 < precision < 1 or tries < 1:
        raise UsageError(f"a search needs 0 < from_rate < to_rate, a precision inside 0..1 and a try: got "
                         f"{from_rate:g} to {to_rate:g} req/s, precision {precision:g}, {tries} tries")


def require_enough(
    slo: SLO, *, from_rate: float, duration_s: float, tries: int, confidence: float = CONFIDENCE
) -> None:
    """Raise UsageError where all tries of the lowest rate bring too few requests to find it inside, all in time."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    needed = ceil(z * z * slo.share / (1 - slo.share))  # Wilson's lower end of n of n is n / (n + z^2)
    if from_rate * duration_s * tries < needed:
        raise UsageError(f"{tries} tries of {duration_s:g} s at {from_rate:g} req/s bring about "
                         f"{from_rate * duration_s * tries:.0f} requests, and fewer than {needed} can never be surely "
                         f"inside {percent(slo.share)}: raise --duration-s or --tries (or --from-rate)")


def conclusion(found: Sequence[Tried], unit: str = "req/s") -> Capacity:
    """What the rates that were tried so far tell."""
    outside = min((each.rate_per_s for each in found if each.verdict == "outside"), default=None)
    inside = max((each.rate_per_s for each in found if each.verdict == "inside"
                  and (outside is None or each.rate_per_s < outside)), default=None)
    return Capacity(inside, outside, tuple(found), unit)


def _rates(found: list[Tried], low: float, high: float, precision: float) -> Iterator[float]:
    """The next rate to try, told by what was found so far."""
    rate = low
    while True:
        yield rate
        if not found[-1].enough or rate >= high:
            break
        rate = min(2 * rate, high)
    if len(found) == 1 or found[-1].enough:
        return
    below, above = found[-2].rate_per_s, found[-1].rate_per_s
    while above / below > 1 + precision:
        yield sqrt(below * above)
        if found[-1].enough:
            below = found[-1].rate_per_s
        else:
            above = found[-1].rate_per_s


def _try(measure: Callable[[float], Attained], rate: float, slo: SLO, tries: int, confidence: float) -> Tried:
    attained = Attained(0, 0)
    low, high = 0.0, 1.0
    verdict: Literal["inside", "outside", "undecided"] = "undecided"
    for _ in range(tries):
        attained += measure(rate)
        low, high = attained.interval(confidence)
        verdict = "inside" if low >= slo.share else "outside" if high < slo.share else "undecided"
        if verdict != "undecided":
            break
    enough = attained.total == 0 or attained.share >= slo.share  # nothing came: nothing speaks against more
    return Tried(rate, attained, verdict, low, high, enough)


class Search(BaseModel):
    """A search as `capacity.json` keeps it: `pabench capacity` writes it beside its runs. Texts may be hostile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    label: str             # of the engine, as its runs have it
    workload: str
    slo: SLO
    confidence: float      # of the intervals
    finished: bool         # not broken off by Ctrl-C or an error
    ended_by: str = ""     # what broke it off
    capacity: Capacity

    @property
    def text(self) -> str:
        """The conclusion in words."""
        if self.finished:
            return self.capacity.text
        return f"broken off{f' ({self.ended_by})' if self.ended_by else ''}, so far: {self.capacity.bounds}"

    def write(self, folder: Path) -> None:
        """Write `capacity.json`. Raises RecordsUnwritable."""
        folder.mkdir(parents=True, exist_ok=True)  # no run of the search may have had a request
        told = self.model_dump() | dict(zip(_WORDS, (self.text, self.slo.text), strict=True))
        write_atomic(folder / CAPACITY_FILE, orjson.dumps(told, option=orjson.OPT_INDENT_2))


def read_search(path: Path) -> Search:
    """A `capacity.json`. Raises UsageError when it cannot be read as one."""
    try:
        told = orjson.loads(path.read_bytes())
        found = Search.model_validate({key: value for key, value in told.items() if key not in _WORDS})
        if not found.capacity.tried:
            raise ValueError("it tried no rate")
        return found
    except (OSError, ValueError, AttributeError, UsageError) as error:
        why = wrong_fields(error, 1) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise UsageError(f"{path} cannot be read as a search of version 1: {why}") from None
