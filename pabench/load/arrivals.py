"""When requests come: laws of arrival, drawn before a run from its seed.

Closed arrivals wait for answers. The others are an absolute schedule, whatever the engine does: a queue that builds up
is then seen in the latencies, and not hidden by a client that waits too.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Floats = np.ndarray  # of float64
Seconds = Annotated[float, Field(gt=0, le=1e9)]    # thirty years: beyond that a unit is wrong
RatePerS = Annotated[float, Field(gt=0, le=1e9)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ClosedArrivals(_Strict):
    """`users` at once; each sends its next request `think_s` after the end of its last."""

    kind: Literal["closed"]
    users: int = Field(ge=1)
    think_s: float = Field(default=0.0, ge=0, le=1e9)

    def text(self, unit: str) -> str:
        """In words; `unit` is that of a rate, e.g. "req/s"."""
        return "1 user" if self.users == 1 else f"{self.users} users"


class _OneRate(_Strict):
    rate_per_s: RatePerS

    @property
    def end_s(self) -> float | None:
        """When no more come; None: never."""
        return None

    def expected(self, duration_s: float) -> float:
        """How many come in the first `duration_s` seconds, on average."""
        return self.rate_per_s * duration_s


class ConstantArrivals(_OneRate):
    """A request every 1 / `rate_per_s` seconds."""

    kind: Literal["constant"]

    def text(self, unit: str) -> str:
        """In words; `unit` is that of a rate, e.g. "req/s"."""
        return f"{self.rate_per_s:g} {unit} constant"

    def starts(self, rng: np.random.Generator, count: int) -> Floats:
        """Seconds of the first `count` arrivals."""
        return np.arange(count) / self.rate_per_s


class PoissonArrivals(_OneRate):
    """Exponential gaps of mean 1 / `rate_per_s` seconds: many users who do not know of each other."""

    kind: Literal["poisson"]

    def text(self, unit: str) -> str:
        """In words; `unit` is that of a rate, e.g. "req/s"."""
        return f"{self.rate_per_s:g} {unit} Poisson"

    def starts(self, rng: np.random.Generator, count: int) -> Floats:
        """Seconds of the first `count` arrivals."""
        return np.cumsum(rng.exponential(1.0 / self.rate_per_s, size=count))


class GammaArrivals(_OneRate):
    """Gamma gaps of mean 1 / `rate_per_s` seconds and shape `burstiness`, as `vllm bench serve` has it: 1 is Poisson,
    less comes in bursts, more is evener. The coefficient of variation of the gaps is 1 / sqrt(burstiness).
    """

    kind: Literal["gamma"]
    burstiness: float = Field(ge=1e-3, le=1e6)

    def text(self, unit: str) -> str:
        """In words; `unit` is that of a rate, e.g. "req/s"."""
        return f"{self.rate_per_s:g} {unit} gamma {self.burstiness:g}"

    def starts(self, rng: np.random.Generator, count: int) -> Floats:
        """Seconds of the first `count` arrivals, as they look to who comes at any time: a first gap that is under way,
        not one that has just begun, or more would come in a short run than at the rate (Cox, Renewal Theory, 1962).
        """
        scale_s = 1.0 / (self.rate_per_s * self.burstiness)
        gaps = rng.gamma(self.burstiness, scale_s, size=count)
        gaps[:1] = rng.uniform() * rng.gamma(self.burstiness + 1.0, scale_s)
        return np.cumsum(gaps)


class StepArrivals(_Strict):
    """Poisson at each of `rates_per_s` in turn, for `step_s` seconds each; a rate of 0 is a pause."""

    kind: Literal["steps"]
    rates_per_s: list[Annotated[float, Field(ge=0, le=1e9)]] = Field(min_length=1)
    step_s: Seconds

    def text(self, unit: str) -> str:
        """In words; `unit` is that of a rate, e.g. "req/s"."""
        return f"{', '.join(f'{rate:g}' for rate in self.rates_per_s)} {unit}, {self.step_s:g} s each"

    @property
    def end_s(self) -> float | None:
        """When no more come."""
        return self.step_s * len(self.rates_per_s)

    @property
    def rate_per_s(self) -> float:
        """Of all steps together."""
        return float(np.mean(self.rates_per_s))

    def expected(self, duration_s: float) -> float:
        """How many come in the first `duration_s` seconds, on average."""
        return float(np.interp(duration_s, *self._cumulated()))

    def starts(self, rng: np.random.Generator, count: int) -> Floats:
        """Seconds of the first `count` arrivals, or of all: a Poisson process of rate 1, its time stretched by step."""
        times, counts = self._cumulated()
        unit = np.cumsum(rng.exponential(size=count))
        unit = unit[unit < counts[-1]]
        step = np.searchsorted(counts, unit, side="right") - 1  # never a pause: nothing is counted there
        starts: Floats = times[step] + (unit - counts[step]) / np.asarray(self.rates_per_s)[step]
        return starts

    def _cumulated(self) -> tuple[Floats, Floats]:
        """Times of the steps' edges, and how many have come by then on average."""
        times = np.arange(len(self.rates_per_s) + 1) * self.step_s
        return times, np.concatenate([[0.0], np.cumsum(self.rates_per_s) * self.step_s])


class RampArrivals(_Strict):
    """Poisson, at a rate that goes evenly from one to another in `over_s` seconds, and stays there."""

    kind: Literal["ramp"]
    from_rate_per_s: float = Field(ge=0, le=1e9)
    to_rate_per_s: RatePerS
    over_s: Seconds

    def text(self, unit: str) -> str:
        """In words; `unit` is that of a rate, e.g. "req/s"."""
        return f"{self.from_rate_per_s:g} to {self.to_rate_per_s:g} {unit} in {self.over_s:g} s"

    @property
    def end_s(self) -> float | None:
        """When no more come; None: never."""
        return None

    @property
    def rate_per_s(self) -> float:
        """At its end."""
        return self.to_rate_per_s

    def expected(self, duration_s: float) -> float:
        """How many come in the first `duration_s` seconds, on average."""
        on_ramp = min(duration_s, self.over_s)
        slope = (self.to_rate_per_s - self.from_rate_per_s) / self.over_s
        return (self.from_rate_per_s * on_ramp + slope * on_ramp**2 / 2
                + self.to_rate_per_s * max(0.0, duration_s - self.over_s))

    def starts(self, rng: np.random.Generator, count: int) -> Floats:
        """Seconds of the first `count` arrivals: a Poisson process of rate 1, its time stretched."""
        unit = np.cumsum(rng.exponential(size=count))
        whole = self.expected(self.over_s)
        slope = (self.to_rate_per_s - self.from_rate_per_s) / self.over_s
        first = self.from_rate_per_s
        # Where first t + slope t^2 / 2 = u; in this form it is exact for slope 0 too.
        root = np.sqrt(np.maximum(first**2 + 2 * slope * np.minimum(unit, whole), 0.0))
        on_ramp = 2 * np.minimum(unit, whole) / (first + root)
        return np.where(unit <= whole, on_ramp, self.over_s + (unit - whole) / self.to_rate_per_s)


class TraceArrivals(_Strict):
    """When the requests of the workload's trace came, `speed` times as fast."""

    kind: Literal["trace"]
    speed: float = Field(default=1.0, ge=1e-6, le=1e9)

    def text(self, unit: str) -> str:
        """In words; `unit` is that of a rate, e.g. "req/s"."""
        return "as traced" if self.speed == 1 else f"as traced, {self.speed:g} times as fast"

    @property
    def end_s(self) -> float | None:
        """When no more come: the trace itself ends."""
        return float("inf")

    @property
    def rate_per_s(self) -> float | None:
        """Whatever the trace has."""
        return None


OpenArrivals = ConstantArrivals | PoissonArrivals | GammaArrivals | StepArrivals | RampArrivals
Arrivals = Annotated[ClosedArrivals | OpenArrivals | TraceArrivals, Field(discriminator="kind")]
KINDS = ("closed", "constant", "poisson", "gamma", "steps", "ramp", "trace")
