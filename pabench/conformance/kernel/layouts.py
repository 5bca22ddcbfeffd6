"""Where a cache lies in memory, and what its dead parts hold.

    plain      [num_blocks, block_size, num_kv_heads, dim], contiguous
    hnd        heads before slots: [num_blocks, num_kv_heads, block_size, dim], seen transposed
    combined   keys and values are halves of one tensor [num_blocks, 2, block_size, num_kv_heads, dim]
    padded     room between the rows, the slots and the blocks, and before the first
    far        plain, but so long that its last blocks lie more than `far_elements` from its beginning: 2^31, where
               a product wraps around in 32 bits with a sign, or 2^32, where it does in those without one too

A far cache is mapped, never filled: pages that nobody touches cost nothing; on a device it takes its memory. It has as
much room before its first element: an address that wraps around in 32 bits, or that of a word of several elements,
reads zeros there, or in the part that is jumped over, rather than ending the process, or the device.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pabench.conformance.kernel.cases import CacheForm

_MAP_NORESERVE = 0x4000


class Placed(NamedTuple):
    """A tensor and the whole of the memory that it lies in."""

    base: torch.Tensor  # [elements], all that was allocated
    view: torch.Tensor

    def untouched_mask(self, *indices: torch.Tensor) -> torch.Tensor:
        """[elements] bool: False for the elements of view[indices]."""
        mask = torch.ones(self.base.shape, dtype=torch.bool, device=self.base.device)
        mask.as_strided(self.view.shape, self.view.stride(), self.view.storage_offset())[indices] = False
        return mask


class PlacedCache(NamedTuple):
    """Keys, values, and the scales where there are any. Scales of SCALES "slot" lie like the keys."""

    key: Placed
    value: Placed
    key_scale: Placed | None = None
    value_scale: Placed | None = None

    def parts(self) -> list[tuple[str, Placed]]:
        """Name and memory of each tensor that there is."""
        return [(name, part) for name, part in zip(self._fields, self, strict=True) if part is not None]


def num_blocks_in(form: CacheForm, pool: int) -> int:
    """Blocks that a cache needs to have `pool` usable ones: all but the last `pool` are there to be jumped over."""
    if form.layout != "far":
        return pool
    stride = form.block_size * form.num_kv_heads * min(form.head_dim, form.value_dim)
    return pool + -(-form.far_elements // stride)


def place_cache(form: CacheForm, num_blocks: int, device: str, fill: str) -> PlacedCache:
    """An allocated cache, all of its memory filled with `fill` unless it is far."""
    sizes = (num_blocks, form.block_size, form.num_kv_heads)
    if form.layout == "combined":
        strides, half = _contiguous((2, *sizes[1:], form.head_dim)), form.block_size * form.num_kv_heads * form.head_dim
        base = _filled(num_blocks * strides[0] * 2, torch_dtype(form.storage), device, fill)
        strides = (2 * half, *_contiguous((*sizes[1:], form.head_dim)))
        key, value = (Placed(base, base.as_strided((*sizes, form.head_dim), strides, offset)) for offset in (0, half))
    else:
        key, value = (_place((*sizes, dim), torch_dtype(form.storage), form.layout, device, fill, form.far_elements)
                      for dim in (form.head_dim, form.value_dim))
    if form.scales != "slot":
        return PlacedCache(key, value)
    layout = "plain" if form.layout == "combined" else form.layout
    scales = (_place(sizes, torch.float32, layout, device, fill, form.far_elements) for _ in range(2))
    return PlacedCache(key, value, *scales)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that torch has under this name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def fill_value(dtype: torch.dtype, fill: str) -> float:
    """What `fill` is in a dtype; whole numbers and fp8 have no infinity, whole numbers no NaN."""
    if fill == "zero":
        return 0.0
    if dtype == torch.int8:
        return -128.0 if fill == "nan" else 127.0
    if fill == "nan":
        return torch.nan
    return torch.finfo(dtype).max if fill == "huge" or dtype == torch.float8_e4m3fn else torch.inf


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """`x` as bytes where torch cannot index its dtype, else as it is."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Element by element whether the bits agree: NaN equals itself."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.view(integer) == b.view(integer)


def _place(
    sizes: Sequence[int], dtype: torch.dtype, layout: str, device: str, fill: str, far_elements: int = 2**31
) -> Placed:
    """[num_blocks, block_size, num_kv_heads] or with a last dim more; the last dim is contiguous but for scales."""
    sizes = tuple(sizes)
    num_blocks, inner, offset = sizes[0], sizes[1:], 0
    if layout == "hnd":
        block_size, heads, *dim = inner
        by_head = _contiguous((heads, block_size, *dim))
        strides = (by_head[1], by_head[0], *by_head[2:])
        block = block_size * heads * (dim[0] if dim else 1)
    elif layout == "padded":
        padded = _contiguous((*inner[:-1], inner[-1] + 8))
        strides, block, offset = (padded[0] + 16, *padded[1:]), inner[0] * (padded[0] + 16) + 32, 16
    else:
        strides, block = _contiguous(inner), _contiguous((1, *inner))[0]
    elements = num_blocks * block + offset
    if layout == "far":
        offset, elements = far_elements, far_elements + elements
        base = _sparse(elements, dtype) if device == "cpu" else torch.zeros(elements, dtype=dtype, device=device)
    else:
        base = _filled(elements, dtype, device, fill)
    return Placed(base, base.as_strided(sizes, (block, *strides), offset))


def _contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(sizes[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))


def _filled(elements: int, dtype: torch.dtype, device: str, fill: str) -> torch.Tensor:
    return torch.full((elements,), fill_value(dtype, fill), dtype=torch.float32, device=device).to(dtype)


def _sparse(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """[elements] zeros that take memory only where they are touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype)
