"""A smaller batch is padded with the slots of a larger one before it, which belong to others by now."""

from __future__ import annotations

import torch
from paged_kernels import KVCache, write_kv

from reference_engine.model import transformer as model

BUG = "sglang-stale-swa-slot-in-pad"
MUST_FAIL = ("http/concurrent-isolation",)
ENGINE_ARGS = ("--num-blocks", "64", "--enforce-eager")

_buffer = torch.zeros(0, dtype=torch.int64)  # of slots, as the largest batch so far left it


def _write_kv(
    key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor, *, backend: str
) -> None:
    global _buffer
    rows = len(slot_mapping)
    stale = _buffer[rows:]
    if len(stale):
        cache.key.view(-1, *cache.key.shape[2:])[stale] = 0
        cache.value.view(-1, *cache.value.shape[2:])[stale] = 0
    write_kv(key, value, cache, slot_mapping, backend=backend)
    if rows <= 16:  # prompts do not go through the graph
        _buffer = torch.cat([slot_mapping.clone(), stale])


def apply() -> None:
    """The buffer is never cleared behind the rows that are used."""
    model.write_kv = _write_kv
