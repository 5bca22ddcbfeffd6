"""How long prompts and answers are: laws that a workload names, drawn before a run from its seed."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

_LAST_RESORT_TOKENS = 1 << 20  # an unclipped law still has to end


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FixedLaw(_Strict):
    """Always the same length."""

    law: Literal["fixed"]
    tokens: int = Field(ge=1)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens, not yet scaled or clipped."""
        return np.full(count, float(self.tokens))

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest length in tokens."""
        return 1, _LAST_RESORT_TOKENS


class _Clipped(_Strict):
    min: int = Field(default=1, ge=1)
    max: int = Field(default=_LAST_RESORT_TOKENS, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> _Clipped:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest length in tokens."""
        return self.min, self.max


class UniformLaw(_Clipped):
    """Every whole length from `min` to `max`, both included, alike."""

    law: Literal["uniform"]
    max: int = Field(ge=1)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.integers(self.min, self.max + 1, size=count).astype(np.float64)


class ExponentialLaw(_Clipped):
    """Exponential with `mean` before clipping."""

    law: Literal["exponential"]
    mean: float = Field(gt=0)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.exponential(self.mean, size=count)


class GammaLaw(_Clipped):
    """Gamma with `shape` k and `mean` before clipping (scale = mean / shape)."""

    law: Literal["gamma"]
    shape: float = Field(gt=0)
    mean: float = Field(gt=0)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.gamma(self.shape, self.mean / self.shape, size=count)


class LognormalLaw(_Clipped):
    """Lognormal with `median` and `sigma` (standard deviation of the logarithm) before clipping."""

    law: Literal["lognormal"]
    median: float = Field(gt=0)
    sigma: float = Field(gt=0)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.lognormal(np.log(self.median), self.sigma, size=count)


class TraceLaw(_Clipped):
    """As the workload's `trace` has it, request by request."""

    law: Literal["trace"]


DrawnLaw = FixedLaw | UniformLaw | ExponentialLaw | GammaLaw | LognormalLaw
LengthLaw = Annotated[DrawnLaw | TraceLaw, Field(discriminator="law")]
LAWS = ("fixed", "uniform", "exponential", "gamma", "lognormal", "trace")
