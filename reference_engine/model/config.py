"""The geometry of a model: what its config.json comes down to, whatever its family. See `families`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pabench.errors import UsageError
from reference_engine.model.rope import RopeConfig


class LayerConfig(NamedTuple):
    """What differs from layer to layer."""

    window: int | None = None  # a query sees this many positions, its own included; None: all
    rope: int | None = 0       # index into ModelConfig.ropes; None: this layer knows no positions


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Geometry of a decoder with RMS norms and gated MLPs. Widths in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    ropes: tuple[RopeConfig, ...]
    rms_norm_eps: float = 1e-6
    activation: str = "silu"              # of the MLP's gate: silu or gelu_tanh
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False                 # each head's query and key are normed
    out_norms: bool = False               # what attention and MLP give is normed too, before it is added
    norm_plus_one: bool = False           # norms multiply by 1 + weight
    embed_scale: float = 1.0
    attention_scale: float | None = None  # scores are multiplied by it; None: 1 / sqrt(head_dim)
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    tie_word_embeddings: bool = False
    fused_checkpoint: bool = False        # the checkpoint holds qkv_proj and gate_up_proj, each in one tensor
    eos_token_ids: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_q_heads", "num_kv_heads", "head_dim",
            "max_position_embeddings", "rms_norm_eps", "attention_scale", "attention_soft_cap", "logit_soft_cap",
        )} | {f"the window of layer {i}": layer.window for i, layer in enumerate(self.layers)}
        problems = [f"{name} is {value}" for name, value in sizes.items() if value is not None and value <= 0]
        if not problems and self.num_q_heads % self.num_kv_heads:
            problems.append(f"{self.num_q_heads} query heads do not divide by {self.num_kv_heads} KV heads")
        if problems:
            raise UsageError(f"config.json makes no sense: {'; '.join(problems)}")
        for rope in self.ropes:
            rope.rotary_dim(self.head_dim)

    @property
    def num_layers(self) -> int:
        """Layers, each with a KV cache of its own."""
        return len(self.layers)

    @property
    def uniform_window(self) -> int | None:
        """The window that all layers have, so that no position behind it is ever read again; None if there is none."""
        windows = {layer.window for layer in self.layers}
        return windows.pop() if len(windows) == 1 else None


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
