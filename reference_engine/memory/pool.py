"""The memory of the KV cache: one tensor, allocated once. Which block belongs to whom is the allocator's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pabench.errors import UsageError
from reference_engine.model.config import ModelConfig


class BlockCopy(NamedTuple):
    """Contents of block `source` that must stand in block `target` before the next write."""

    source: int
    target: int


class KVPool:
    """`tensor`: [num_layers, 2 (key, value), num_blocks, block_size, num_kv_heads, head_dim]."""

    def __init__(
        self, model: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (model.num_layers, 2, num_blocks, block_size, model.num_kv_heads, model.head_dim)
        try:
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise UsageError(f"no memory for a KV cache of shape {list(shape)}: lower --num-blocks") from error

    @property
    def num_bytes(self) -> int:
        """Size of the cache."""
        return self.tensor.nbytes

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Do all copies as if at once: every source is read before any target is written."""
        if copies:
            sources, targets = torch.tensor(copies, device=self.tensor.device).unbind(1)
            self.tensor[:, :, targets] = self.tensor[:, :, sources]
