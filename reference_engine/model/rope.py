"""Rotary position embedding: what config.json asks for, and the tables of its angles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pabench.errors import UsageError

if TYPE_CHECKING:
    import torch

# Kind -> the parameters that it reads, beside theta and the share of dims that turn.
_PARAMETERS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
             "mscale_all_dim", "truncate"},
    "longrope": {"factor", "original_max_position_embeddings", "short_factor", "long_factor", "attention_factor"},
}
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of the first `partial * head_dim` dims of a head; the others do not turn.

    `kind` is "default", "linear", "llama3", "yarn" or "longrope"; the fields behind `partial` belong to scaled kinds.
    """

    theta: float = 10000.0
    kind: str = "default"
    partial: float = 1.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    magnitude: float = 1.0                  # cosine and sine are multiplied by it
    short_factors: tuple[float, ...] = ()   # of longrope: what each frequency is divided by

    def __post_init__(self) -> None:
        if self.theta <= 0 or self.factor <= 0 or self.high_freq_factor <= self.low_freq_factor \
                or not 0 < self.partial <= 1 or self.original_max_positions < 1:
            raise UsageError(f"RoPE parameters make no sense: {self}")

    @classmethod
    def from_json(cls, params: dict[str, Any], max_positions: int) -> RopeConfig:
        """From the parameters in config.json, `rope_theta` among them. Raises UsageError for what is not known.

        `max_positions` is the model's longest sequence, which some kinds scale by.
        """
        params = {name: value for name, value in params.items() if value is not None}
        kind = params.get("rope_type", params.get("type", "default"))
        kind = "longrope" if kind == "su" else kind  # its first name
        if kind == "dynamic":
            raise UsageError("RoPE type 'dynamic' is not supported: the angles of a cached key would change with the "
                             "length of its sequence; set linear or yarn scaling, or none")
        if kind not in _PARAMETERS:
            raise UsageError(f"RoPE type {kind!r} is not supported, expected one of {', '.join(_PARAMETERS)}")
        if unknown := sorted(params.keys() - _PARAMETERS[kind] - _COMMON):
            raise UsageError(f"RoPE of type {kind!r} has unknown parameters {', '.join(unknown)}")
        original = int(params.get("original_max_position_embeddings", max_positions))
        factor = float(params.get("factor", max_positions / original))
        return cls(
            theta=float(params["rope_theta"]),
            kind=kind,
            partial=float(params.get("partial_rotary_factor", 1.0)),
            factor=factor,
            low_freq_factor=float(params.get("low_freq_factor", 1.0)),
            high_freq_factor=float(params.get("high_freq_factor", 4.0)),
            original_max_positions=original,
            beta_fast=float(params.get("beta_fast", 32.0)),
            beta_slow=float(params.get("beta_slow", 1.0)),
            truncate=bool(params.get("truncate", True)),
            magnitude=_magnitude(kind, params, factor, original),
            short_factors=tuple(map(float, params["short_factor"])) if kind == "longrope" else (),
        )

    def rotary_dim(self, head_dim: int) -> int:
        """How many dims of a head turn, an even number."""
        dim = int(head_dim * self.partial)
        if dim < 2 or dim % 2:
            raise UsageError(f"RoPE turns {dim} of {head_dim} dims, expected a positive even number")
        return dim

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians a token of each pair of dims: [rotary_dim / 2] float32."""
        import torch  # here: who only reads a config starts without it

        dim = self.rotary_dim(head_dim)
        freqs = 1.0 / (self.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
        if self.kind == "linear":
            return freqs / self.factor
        if self.kind == "longrope":
            if len(self.short_factors) != dim // 2:
                raise UsageError(f"RoPE has {len(self.short_factors)} short factors, expected {dim // 2}")
            return freqs / torch.tensor(self.short_factors)
        if self.kind == "llama3":  # slow frequencies are divided by the factor, fast ones kept, those between blended
            turns = self.original_max_positions * freqs / (2 * math.pi)  # full turns within the original context
            keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
            return freqs * ((1 - keep) / self.factor + keep)
        if self.kind == "yarn":  # as llama3, but blended along the index of the pair instead of its turns
            low, high = self._pair_of(self.beta_fast, dim), self._pair_of(self.beta_slow, dim)
            if self.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, dim - 1)
            divide = ((torch.arange(dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
            return freqs * (divide / self.factor + (1 - divide))
        return freqs

    def _pair_of(self, turns: float, dim: int) -> float:
        """Index of the pair that makes so many full turns within the original context."""
        return dim * math.log(self.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

    def tables(self, head_dim: int, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosine, sine), each [num_positions, 1, rotary_dim] float32: dim i turns with dim i + rotary_dim / 2.

        Raises UsageError for a longrope table beyond its original context: there other factors hold, for keys that are
        cached already too.
        """
        if self.kind == "longrope" and num_positions > self.original_max_positions:
            raise UsageError(f"longrope is supported up to the original context of {self.original_max_positions} "
                             f"tokens, got {num_positions}: lower --max-model-len")
        import torch

        angles = torch.arange(num_positions).float()[:, None] * self.inverse_frequencies(head_dim)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude


def _magnitude(kind: str, params: dict[str, Any], factor: float, original: int) -> float:
    """What yarn and longrope multiply cosine and sine by; 1 for the other kinds."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if "attention_factor" in params:
        return float(params["attention_factor"])
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    if params.get("mscale") and params.get("mscale_all_dim"):
        part, whole = (0.1 * float(params[name]) * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim"))
        return part / whole
    return 0.1 * math.log(factor) + 1
