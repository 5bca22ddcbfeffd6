"""The seam for whole transformer layers: norms, products, rotary embedding, KV write and attention in one call.

A small batch of a small model spends its time on calls: a layer is some fifteen, each of which takes longer to hand
over its tensors than to compute. What can do better with a batch says so (`AttentionPlan.whole_layers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Turns = Sequence[tuple[torch.Tensor, torch.Tensor]]  # (cosine, sine) [num_tokens, 1, rotary_dim] of each rope


class WholeLayer(NamedTuple):
    """A Llama layer: no biases, no norms but the two, silu. float32 and contiguous; a product is x @ weight."""

    attention_norm: NDArray[np.float32]  # [hidden_size]
    qkv: NDArray[np.float32]             # [hidden_size, (num_q_heads + 2 * num_kv_heads) * head_dim]
    o: NDArray[np.float32]               # [num_q_heads * head_dim, hidden_size]
    mlp_norm: NDArray[np.float32]        # [hidden_size]
    gate_up: NDArray[np.float32]         # [hidden_size, 2 * intermediate_size]
    down: NDArray[np.float32]            # [intermediate_size, hidden_size]
    key: NDArray[np.float32]             # [num_blocks * block_size, num_kv_heads, head_dim], the cache
    value: NDArray[np.float32]           # like key
    eps: float                           # of both norms
    scale: float                         # of a score
    window: int                          # positions that a token sees; 0: all
    soft_cap: float                      # of a score; 0: none
    rope: int                            # index into the turns; last, since no compiled code takes it

    @property
    def num_weights(self) -> int:
        """Elements of all products."""
        return self.qkv.size + self.o.size + self.gate_up.size + self.down.size


class WholeLayers(Protocol):
    """Layers over the tokens of one batch."""

    def run(self, hidden: torch.Tensor, layers: Sequence[WholeLayer], turns: Turns, slots: torch.Tensor) -> None:
        """Hidden [num_tokens, hidden_size] float32, contiguous, becomes the last layer's result; caches are written.

        turns: float32, as `Elementwise.rotate` takes them; slots: [num_tokens] int64, as `write_kv` takes them. Raises
        ValueError for a slot, or a live entry of a block table, that is outside the cache.
        """
        ...
