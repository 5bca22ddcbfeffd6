"""What a model folder's config.json says about its model, checked at once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pabench.errors import UsageError

ARCHITECTURES = ("LlamaForCausalLM",)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `kind` is "default", "linear" or "llama3"; all fields but theta belong to scaled kinds."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("default", "linear", "llama3"):
            raise UsageError(f"RoPE type {self.kind!r} is not supported, expected default, linear or llama3")
        if self.theta <= 0 or self.factor <= 0 or self.high_freq_factor <= self.low_freq_factor:
            raise UsageError(f"RoPE parameters make no sense: {self}")

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> RopeConfig:
        """From config.json: transformers 5 writes `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`."""
        params = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if params.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
            raise UsageError("partial rotary embeddings are not supported")
        return cls(
            theta=float(params.get("rope_theta", config.get("rope_theta", 10000.0))),
            kind=params.get("rope_type", params.get("type", "default")),
            factor=float(params.get("factor", 1.0)),
            low_freq_factor=float(params.get("low_freq_factor", 1.0)),
            high_freq_factor=float(params.get("high_freq_factor", 4.0)),
            original_max_positions=int(params.get("original_max_position_embeddings", 8192)),
        )

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """Radians a token of each pair of dims: [head_dim / 2] float32.

        "llama3" divides slow frequencies by `factor`, keeps fast ones and blends between (Llama 3.1's scaling).
        """
        freqs = 1.0 / (self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
        if self.kind == "linear":
            return freqs / self.factor
        if self.kind == "llama3":
            turns = self.original_max_positions * freqs / (2 * math.pi)  # full turns within the original context
            keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
            return freqs * ((1 - keep) / self.factor + keep)
        return freqs


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Geometry of a Llama-family model. Widths in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        problems = [f"{name} is {value}" for name, value in self._sizes().items() if value < 1]
        if not problems and self.num_q_heads % self.num_kv_heads:
            problems.append(f"{self.num_q_heads} query heads do not divide by {self.num_kv_heads} KV heads")
        if self.head_dim % 2:
            problems.append(f"head_dim {self.head_dim} is odd, RoPE needs pairs")
        if problems:
            raise UsageError(f"config.json makes no sense: {'; '.join(problems)}")

    def _sizes(self) -> dict[str, int]:
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_q_heads", "num_kv_heads",
                 "head_dim", "max_position_embeddings")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """From config.json, and the end-of-text ids also from generation_config.json."""
        config = read_json(folder / "config.json", f"{folder} is no model folder")
        architectures = config.get("architectures") or []
        if not any(name in ARCHITECTURES for name in architectures):
            raise UsageError(f"{folder} holds {architectures or 'no architecture'}, "
                             f"this engine serves {', '.join(ARCHITECTURES)}")
        _refuse_what_is_not_done(config, folder)
        generation = folder / "generation_config.json"
        eos = _token_ids(config.get("eos_token_id"))
        if generation.is_file():
            eos |= _token_ids(read_json(generation, "generation_config.json cannot be read").get("eos_token_id"))
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            return cls(
                vocab_size=config["vocab_size"],
                hidden_size=hidden,
                intermediate_size=config["intermediate_size"],
                num_layers=config["num_hidden_layers"],
                num_q_heads=heads,
                num_kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                max_position_embeddings=config.get("max_position_embeddings", 2048),
                rms_norm_eps=config.get("rms_norm_eps", 1e-6),
                rope=RopeConfig.from_json(config),
                tie_word_embeddings=config.get("tie_word_embeddings", False),
                attention_bias=config.get("attention_bias", False),
                mlp_bias=config.get("mlp_bias", False),
                eos_token_ids=eos,
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UsageError(f"{folder}/config.json is incomplete or malformed: {error!r}") from error


def _refuse_what_is_not_done(config: dict[str, Any], folder: Path) -> None:
    if config.get("quantization_config"):
        raise UsageError(f"{folder} is quantised, this engine serves float32, bfloat16 and float16 weights")
    if config.get("hidden_act", "silu") != "silu":
        raise UsageError(f"{folder} has hidden_act {config['hidden_act']!r}, this engine knows silu")


def _token_ids(value: int | list[int] | None) -> frozenset[int]:
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)


def read_json(path: Path, complaint: str) -> dict[str, Any]:
    """A JSON object from a file. Raises UsageError that begins with `complaint`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{complaint}: {path}: {reason}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{complaint}: {path} holds no JSON object")
    return value
