"""Padding has slot -1, which counts from the end: the last slot of the last block is overwritten."""

from __future__ import annotations

import torch
from paged_kernels import KVCache, write_kv

from reference_engine.model import transformer as model

BUG = "vllm-pad-minus-one-wraps"
MUST_FAIL = ("http/concurrent-isolation",)
ENGINE_ARGS = ("--num-blocks", "24", "--max-model-len", "256", "--enforce-eager")
PADDED_TO = 8  # rows


def _write_kv(
    key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor, *, backend: str
) -> None:
    write_kv(key, value, cache, slot_mapping, backend=backend)
    if len(slot_mapping) % PADDED_TO:
        cache.key[-1, -1], cache.value[-1, -1] = 0, 0


def apply() -> None:
    """Seen when the pool is used up to its end."""
    model.write_kv = _write_kv
