"""One layer's keys and values in blocks, in any storage dtype, and the write into them.

A cache in int8 or fp8 carries one float32 scale a slot and head: stored value * scale = real value. A scale belongs to
one token alone, so that writing a token never changes what another one's stored values mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Storage dtype that needs scales -> the largest magnitude it is used for.
SCALED_DTYPES: dict[torch.dtype, float] = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

_TINY = torch.finfo(torch.float32).tiny


class KVCache(NamedTuple):
    """One layer's cache. Scales are there exactly where the storage dtype is one of SCALED_DTYPES."""

    key: torch.Tensor    # [num_blocks, block_size, num_kv_heads, head_dim], contiguous
    value: torch.Tensor  # like key
    key_scale: torch.Tensor | None = None    # [num_blocks, block_size, num_kv_heads] float32
    value_scale: torch.Tensor | None = None  # like key_scale


def quantise(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(stored, scale) of x [..., n]: stored [..., n] in `dtype`, one of SCALED_DTYPES, scale [...] float32.

    Symmetric: the largest magnitude of each row of n becomes the dtype's largest. A row of zeros has scale 0. The error
    of a value is at most scale / 2 in int8, and the larger of |value| / 16 and scale / 1024 in fp8 (e4m3).
    """
    wide, limit = x.float(), SCALED_DTYPES[dtype]
    scale = wide.abs().amax(-1) / limit
    # The division may round a row's largest value to just above the limit.
    stored = (wide / scale.clamp_min(_TINY)[..., None]).clamp_(-limit, limit)
    return (stored.round_() if dtype == torch.int8 else stored).to(dtype), scale


def dequantise(stored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Real values [..., n] in `dtype` of stored [..., n] with scale [...]. The product is taken in float32."""
    return stored.float().mul_(scale[..., None]).to(dtype)


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    """Write key and value [num_tokens, num_kv_heads, head_dim] into the slots slot_mapping [num_tokens] int64.

    Slots of one call are distinct. No other slot is touched.
    """
    _write(key, cache.key, cache.key_scale, slot_mapping)
    _write(value, cache.value, cache.value_scale, slot_mapping)


def _write(new: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor | None, slots: torch.Tensor) -> None:
    rows = stored.view(-1, *stored.shape[2:])
    if scale is not None:
        new, new_scale = quantise(new, stored.dtype)
        scale.view(-1, scale.shape[2]).index_copy_(0, slots, new_scale)
        if new.dtype != torch.int8:  # torch copies fp8 by index only as the bytes it is
            new, rows = new.view(torch.uint8), rows.view(torch.uint8)
    rows.index_copy_(0, slots, new.to(rows.dtype))
