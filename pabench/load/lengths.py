"""How long prompts and answers are: laws that a workload names, drawn before a run from its seed."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_TOKENS = 2**31 - 1         # what the records hold
_LAST_RESORT_TOKENS = 1 << 20  # an unclipped law still has to end
_Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
_Mean = Annotated[float, Field(gt=0, le=MAX_TOKENS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FixedLaw(_Strict):
    """Always the same length."""

    law: Literal["fixed"]
    tokens: _Tokens

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens, not yet scaled or clipped."""
        return np.full(count, float(self.tokens))

    def bounds(self, scale: float = 1.0) -> tuple[int, int]:
        """Smallest and largest length in tokens."""
        return 1, MAX_TOKENS


class _Clipped(_Strict):
    min: _Tokens = 1
    max: _Tokens = _LAST_RESORT_TOKENS

    @model_validator(mode="after")
    def _ordered(self) -> _Clipped:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    def bounds(self, scale: float = 1.0) -> tuple[int, int]:
        """Smallest and largest length in tokens, of lengths that were multiplied by `scale`."""
        return self.min, self.max


class UniformLaw(_Clipped):
    """Every whole length from `min` to `max`, both included, alike: they are the law, and `scale` multiplies them."""

    law: Literal["uniform"]
    max: _Tokens

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.integers(self.min, self.max + 1, size=count).astype(np.float64)

    def bounds(self, scale: float = 1.0) -> tuple[int, int]:
        """Smallest and largest length in tokens, of lengths that were multiplied by `scale`."""
        return max(1, round(self.min * scale)), max(1, min(round(self.max * scale), MAX_TOKENS))


class ExponentialLaw(_Clipped):
    """Exponential with `mean` before clipping."""

    law: Literal["exponential"]
    mean: _Mean

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.exponential(self.mean, size=count)


class GammaLaw(_Clipped):
    """Gamma with `shape` k and `mean` before clipping (scale = mean / shape)."""

    law: Literal["gamma"]
    shape: float = Field(ge=1e-3, le=1e6)
    mean: _Mean

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.gamma(self.shape, self.mean / self.shape, size=count)


class LognormalLaw(_Clipped):
    """Lognormal with `median` and `sigma` (standard deviation of the logarithm) before clipping."""

    law: Literal["lognormal"]
    median: _Mean
    sigma: float = Field(gt=0, le=100)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`[count]` float64 lengths in tokens."""
        return rng.lognormal(np.log(self.median), self.sigma, size=count)


class TraceLaw(_Clipped):
    """As the workload's `trace` has it, request by request."""

    law: Literal["trace"]
    max: _Tokens = MAX_TOKENS


DrawnLaw = FixedLaw | UniformLaw | ExponentialLaw | GammaLaw | LognormalLaw
LengthLaw = Annotated[DrawnLaw | TraceLaw, Field(discriminator="law")]
LAWS = ("fixed", "uniform", "exponential", "gamma", "lognormal", "trace")
