"""One layer's keys and values in blocks, in any storage dtype, the write into them, and copies of whole blocks.

A cache in int8 or fp8 carries scales: stored value * scale = real value. There are three kinds, told by their shape:

    [num_blocks, block_size, num_kv_heads]  one a slot and head, found when a token is written: writing it never changes
                                            what another one's stored values mean
    [num_kv_heads], []                      one a head, or one for the layer, calibrated beforehand; values beyond the
                                            range are clamped
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Storage dtype that needs scales -> the largest magnitude it is used for.
SCALED_DTYPES: dict[torch.dtype, float] = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

# What writes keys and values, copies blocks and merges parts. A caller names one; there is no fall-back to another.
MOVE_BACKENDS = ("torch", "triton")

_TINY = torch.finfo(torch.float32).tiny


def check_move_backend(backend: str) -> None:
    """Raise ValueError for a name that is not one of MOVE_BACKENDS."""
    if backend not in MOVE_BACKENDS:
        raise ValueError(f"unknown backend {backend!r} for writes, copies and merges, expected one of {MOVE_BACKENDS}")


class KVCache(NamedTuple):
    """One layer's cache. Scales are there exactly where the storage dtype is one of SCALED_DTYPES."""

    key: torch.Tensor    # [num_blocks, block_size, num_kv_heads, head_dim], any strides but the last, which is 1
    value: torch.Tensor  # [num_blocks, block_size, num_kv_heads, value_dim], likewise
    key_scale: torch.Tensor | None = None    # float32, of a shape named above
    value_scale: torch.Tensor | None = None  # like key_scale

    @property
    def scales_a_slot(self) -> bool:
        """Whether each slot and head has a scale of its own, which the write finds."""
        return self.key_scale is not None and self.key_scale.dim() == 3


def quantise(
    x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(stored, scale) of x [..., n]: stored [..., n] in `dtype`, one of SCALED_DTYPES, scale [...] float32.

    Symmetric: without a scale, the largest magnitude of each row of n becomes the dtype's largest, and a row of zeros
    has scale 0. With one, broadcast to [...], what does not fit is clamped. The error of a value that fits is at most
    scale / 2 in int8, and the larger of |value| / 16 and scale / 1024 in fp8 (e4m3).
    """
    wide, limit = x.float(), SCALED_DTYPES[dtype]
    if scale is None:
        scale = wide.abs().amax(-1) / limit
    # The division may round a row's largest value to just above the limit.
    stored = (wide / scale.clamp_min(_TINY)[..., None]).clamp_(-limit, limit)
    return (stored.round_() if dtype == torch.int8 else stored).to(dtype), scale


def dequantise(stored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Real values [..., n] in `dtype` of stored [..., n] with scale [...]. The product is taken in float32."""
    return stored.float().mul_(scale[..., None]).to(dtype)


def write_kv(
    key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor, *, backend: str = "torch"
) -> None:
    """Write key [num_tokens, num_kv_heads, head_dim] and value into the slots slot_mapping [num_tokens] int.

    A slot is block * block_size + offset in the block; a negative one belongs to padding, and nothing is written.
    The others of one call are distinct. No other slot is touched. Backend "triton" or "torch".
    """
    check_move_backend(backend)
    if backend == "triton":
        from paged_kernels.triton_backend.cache import write_kv as write_kv_in_triton  # triton is heavy

        write_kv_in_triton(key, value, cache, slot_mapping)
        return
    slot_mapping = slot_mapping.long()
    real = slot_mapping >= 0
    if not bool(real.all()):
        key, value, slot_mapping = key[real], value[real], slot_mapping[real]
    _write(key, cache.key, cache.key_scale, slot_mapping)
    _write(value, cache.value, cache.value_scale, slot_mapping)


def _write(new: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor | None, slots: torch.Tensor) -> None:
    if scale is not None and scale.dim() == 3:
        new, new_scale = quantise(new, stored.dtype)
        _put(scale, slots, new_scale)
    elif scale is not None:
        new, _ = quantise(new, stored.dtype, scale.expand(new.shape[:2]))
    if stored.dtype == torch.float8_e4m3fn:  # torch copies fp8 by index only as the bytes it is
        new, stored = new.view(torch.uint8), stored.view(torch.uint8)
    _put(stored, slots, new.to(stored.dtype))


def _put(stored: torch.Tensor, slots: torch.Tensor, new: torch.Tensor) -> None:
    """Row slots[i] of stored [num_blocks, block_size, ...] becomes new[i]."""
    if stored.is_contiguous():
        stored.view(-1, *stored.shape[2:]).index_copy_(0, slots, new)
    else:
        block_size = stored.shape[1]
        stored[slots // block_size, slots % block_size] = new


def copy_blocks(
    source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor, *, backend: str = "torch"
) -> None:
    """Block pairs[i, 0] of source [outer, num_blocks, ...] becomes block pairs[i, 1] of target, all as if at once.

    Outer slices are layers, keys and values. source and target may be one tensor, or stand on two devices (swapping).
    pairs [n, 2] int64 on the CPU; targets are distinct. Backend "triton" or "torch".
    """
    check_move_backend(backend)
    if source.shape[0] != target.shape[0] or source.shape[2:] != target.shape[2:] or source.dtype != target.dtype:
        raise ValueError(f"blocks of {source.dtype} {list(source.shape)} cannot be copied into {target.dtype} "
                         f"{list(target.shape)}: all but the number of blocks must agree")
    sources, targets = pairs.T.contiguous()
    one_place = source.untyped_storage().data_ptr() == target.untyped_storage().data_ptr()
    if source.device == target.device and not (one_place and bool(torch.isin(sources, targets).any())):
        _copy(source, target, sources, targets, backend)
        return
    # Between devices, and where a block is both read and written: by way of a staging buffer.
    staged = source.new_empty((source.shape[0], len(pairs), *source.shape[2:]))
    places = torch.arange(len(pairs))
    _copy(source, staged, sources, places, _on(source.device, target.device, backend))
    _copy(staged.to(target.device), target, places, targets, _on(target.device, source.device, backend))


def _on(device: torch.device, other: torch.device, backend: str) -> str:
    """The backend for this side of a copy: the host's side of a swap is torch's, the kernels run on the GPU's side."""
    return "torch" if device.type == "cpu" and other.type != "cpu" else backend


def _copy(
    source: torch.Tensor, target: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, backend: str
) -> None:
    if backend == "triton":
        from paged_kernels.triton_backend.cache import copy_rows  # triton is heavy

        copy_rows(_words(source), _words(target), sources.to(source.device), targets.to(source.device))
        return
    if source.dtype == torch.float8_e4m3fn:  # as in _write
        source, target = source.view(torch.uint8), target.view(torch.uint8)
    target[:, targets.to(target.device)] = source[:, sources.to(source.device)]


def _words(x: torch.Tensor) -> torch.Tensor:
    """[outer, num_blocks, words] view of x [outer, num_blocks, ...], in 4-byte words where they fit, else in bytes."""
    if not x[0, 0].is_contiguous():
        raise ValueError(f"the {list(x.shape[2:])} of one block must be contiguous, got strides {x.stride()}")
    x = x.flatten(2)
    size, places = x.element_size(), (x.shape[2], x.stride(0), x.stride(1), x.storage_offset())
    return x.view(torch.int32 if all(place * size % 4 == 0 for place in places) else torch.uint8)
