"""The memory of the KV cache, allocated once. Which block belongs to whom is the allocator's business."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from paged_kernels import SCALED_DTYPES, KVCache, copy_blocks

from pabench.errors import UsageError
from reference_engine.memory.allocator import BlockCopy
from reference_engine.model.config import ModelConfig

KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8,
             "fp8": torch.float8_e4m3fn}


def kv_dtype(name: str, model_dtype: torch.dtype) -> torch.dtype:
    """The storage dtype called `name`, one of KV_DTYPES or "auto", the model's own. Raises UsageError for others."""
    if name == "auto":
        return model_dtype
    if name not in KV_DTYPES:
        raise UsageError(f"KV dtype {name!r} is unknown, expected one of auto, {', '.join(KV_DTYPES)}")
    return KV_DTYPES[name]


class KVPool:
    """Blocks of all layers in the storage dtype `dtype`; int8 and fp8 come with scales (`paged_kernels.KVCache`).

    tensor  [num_layers, 2 (key, value), num_blocks, block_size, num_kv_heads, head_dim]
    scales  [num_layers, 2, num_blocks, block_size, num_kv_heads] float32, or None
    layers  the views of each layer that attention reads and writes
    """

    def __init__(
        self, model: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device,
        copy_backend: str = "torch",
    ) -> None:
        self._copy_backend = copy_backend
        shape = (model.num_layers, 2, num_blocks, block_size, model.num_kv_heads, model.head_dim)
        try:
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
            self.scales = torch.zeros(shape[:-1], device=device) if dtype in SCALED_DTYPES else None
        except (RuntimeError, MemoryError) as error:
            raise UsageError(f"no memory for a KV cache of shape {list(shape)}: lower --num-blocks") from error
        self.layers = [
            KVCache(*self.tensor[i], *(() if self.scales is None else self.scales[i]))
            for i in range(model.num_layers)
        ]

    @property
    def num_bytes(self) -> int:
        """Size of the cache, its scales included."""
        return self.tensor.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Do all copies as if at once: every source is read before any target is written."""
        self.copy_from(self, copies)

    def copy_from(self, other: KVPool, copies: Sequence[BlockCopy]) -> None:
        """Copy blocks of `other`, on any device, into blocks of this pool, all as if at once.

        The pools may differ in their number of blocks alone, else ValueError.
        """
        if other._geometry != self._geometry:
            raise ValueError(f"blocks of {other._geometry} cannot be copied into a pool of {self._geometry}")
        pairs = torch.tensor(copies, dtype=torch.int64).view(-1, 2)
        for theirs, ours in ((other.tensor, self.tensor), (other.scales, self.scales)):
            if theirs is not None and ours is not None:
                copy_blocks(theirs.flatten(0, 1), ours.flatten(0, 1), pairs, backend=self._copy_backend)

    @property
    def _geometry(self) -> tuple[torch.dtype, tuple[int, ...]]:
        layers, sides, _, *block = self.tensor.shape
        return self.tensor.dtype, (layers, sides, *block)
