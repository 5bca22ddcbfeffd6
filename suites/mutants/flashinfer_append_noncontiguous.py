"""The write into the cache goes by a wrong stride: the key of the last head never reaches the last slot of a block."""

from __future__ import annotations

import torch
from paged_kernels import KVCache, write_kv

from reference_engine.model import transformer as model

BUG = "flashinfer-append-noncontiguous"
MUST_FAIL = ("http/ring-exact",)
ENGINE_ARGS = ("--enforce-eager",)


def _write_kv(
    key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor, *, backend: str
) -> None:
    write_kv(key, value, cache, slot_mapping, backend=backend)
    last = slot_mapping[slot_mapping % cache.key.shape[1] == cache.key.shape[1] - 1]
    cache.key.view(-1, *cache.key.shape[2:])[last, -1] = 0


def apply() -> None:
    """Keys only: values are right, so half of the wrong bits are right by chance."""
    model.write_kv = _write_kv
