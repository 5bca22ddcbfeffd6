"""A batch is padded to a fixed size, and the padding is written into slot 0 of block 0, which is a real one."""

from __future__ import annotations

import torch
from paged_kernels import KVCache, write_kv

from reference_engine.model import transformer as model

BUG = "vllm-tpu-pad-writes-slot-0"
MUST_FAIL = ("http/concurrent-isolation",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256", "--enforce-eager")
PADDED_TO = 8  # rows


def _write_kv(
    key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor, *, backend: str
) -> None:
    write_kv(key, value, cache, slot_mapping, backend=backend)
    if len(slot_mapping) % PADDED_TO:
        cache.key[0, 0], cache.value[0, 0] = 0, 0


def apply() -> None:
    """Seen when block 0 is somebody's, and not his first."""
    model.write_kv = _write_kv
