"""Writing keys and values into their slots, and copying whole blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from paged_kernels.cache import SCALED_DTYPES, KVCache
from paged_kernels.triton_backend.attend import NO_SCALE, SCALE_A_SLOT
from paged_kernels.triton_backend.device import check_device, interpreted
from paged_kernels.triton_backend.launch import as_stored, scale_kind
from paged_kernels.triton_backend.tiles import next_power_of_2

_WRITE_ELEMENTS = 2048  # that a program holds at once
_COPY_BYTES = 4096      # that a program copies

ROUND_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and taking it away rounds a float32 to an integer


@triton.jit
def float_to_e4m3(x):
    """uint8 bits of float8_e4m3fn nearest to float32 x, |x| <= 448, ties to even, on targets without that type."""
    bits = tl.abs(x).to(tl.uint32, bitcast=True)
    # Normal numbers: round the mantissa to 3 bits, then move the exponent's bias from 127 to 7.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the steps are 2^-9 wide; 8 of them are the smallest normal number, and encoded like it.
    small = ((tl.abs(x) * 512 + ROUND_EVEN) - ROUND_EVEN).to(tl.uint32)
    magnitude = tl.where(bits < (121 << 23), small, normal)
    magnitude = tl.where(x != x, 0x7F, magnitude)
    return (magnitude | tl.where(x < 0, 0x80, 0)).to(tl.uint8)


@triton.jit
def _write_rows(
    new, stored, scale, token, block, offset, head, stride_nt, stride_nh, stride_cb, stride_cs, stride_ch,
    stride_sb, stride_ss, stride_sh, HEADS: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr,
    SCALES: tl.constexpr, LIMIT: tl.constexpr, INTEGER: tl.constexpr, FP8_BITS: tl.constexpr,
):
    lanes = tl.arange(0, PAD)
    inside = (head < HEADS)[:, None] & (lanes < DIM)[None, :]
    x = tl.load(new + token * stride_nt + head[:, None] * stride_nh + lanes[None, :], mask=inside, other=0.0)
    target = stored + block * stride_cb + offset * stride_cs + head[:, None] * stride_ch + lanes[None, :]
    if SCALES == NO_SCALE:
        tl.store(target, x.to(stored.dtype.element_ty), mask=inside)
    else:
        x = x.to(tl.float32)
        scales = scale + block * stride_sb + offset * stride_ss + head * stride_sh
        if SCALES == SCALE_A_SLOT:
            unit = tl.max(tl.abs(x), 1) / LIMIT  # padded lanes hold 0 and widen nothing
            tl.store(scales, unit, mask=head < HEADS)
        else:
            unit = tl.load(scales, mask=head < HEADS, other=1.0)
        x = x / tl.maximum(unit, 1.1754943508222875e-38)[:, None]
        x = tl.minimum(tl.maximum(x, -LIMIT), LIMIT)
        if INTEGER:
            x = (x + ROUND_EVEN) - ROUND_EVEN
        tl.store(target, float_to_e4m3(x) if FP8_BITS else x.to(stored.dtype.element_ty), mask=inside)


@triton.jit
def write_kernel(
    key, value, stored_key, stored_value, key_scale, value_scale, slots,
    stride_kt, stride_kh, stride_vt, stride_vh, stride_kb, stride_ks, stride_kch, stride_vb, stride_vs, stride_vch,
    stride_ksb, stride_kss, stride_ksh, stride_vsb, stride_vss, stride_vsh,
    BLOCK_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr, SCALES: tl.constexpr,
    LIMIT: tl.constexpr, INTEGER: tl.constexpr, FP8_BITS: tl.constexpr,
):
    """Program (token, i): heads [i * HEADS, (i + 1) * HEADS) of one token, into slot slots[token]; none if negative.

    key, value [num_tokens, NUM_KV_HEADS, HEAD_DIM or VALUE_DIM]; cache and scales as in `KVCache`.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
        _write_rows(key, stored_key, key_scale, token, block, offset, head, stride_kt, stride_kh, stride_kb, stride_ks,
                    stride_kch, stride_ksb, stride_kss, stride_ksh, NUM_KV_HEADS, HEAD_DIM, HEAD_PAD, SCALES, LIMIT,
                    INTEGER, FP8_BITS)
        _write_rows(value, stored_value, value_scale, token, block, offset, head, stride_vt, stride_vh, stride_vb,
                    stride_vs, stride_vch, stride_vsb, stride_vss, stride_vsh, NUM_KV_HEADS, VALUE_DIM, VALUE_PAD,
                    SCALES, LIMIT, INTEGER, FP8_BITS)


@triton.jit
def copy_kernel(
    source, target, source_blocks, target_blocks, words, stride_so, stride_sb, stride_to, stride_tb,
    CHUNK: tl.constexpr,
):
    """Program (i, chunk, outer): CHUNK words of block source_blocks[i] of the outer slice into target_blocks[i]."""
    pair, outer = tl.program_id(0), tl.program_id(2).to(tl.int64)
    word = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    read = source + outer * stride_so + tl.load(source_blocks + pair).to(tl.int64) * stride_sb
    write = target + outer * stride_to + tl.load(target_blocks + pair).to(tl.int64) * stride_tb
    tl.store(write + word, tl.load(read + word, mask=word < words), mask=word < words)


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    """See `paged_kernels.cache.write_kv`."""
    check_device(key.device)
    if any(x.stride(-1) != 1 for x in (key, value, cache.key, cache.value)):
        raise ValueError("the last dim of key, value and their cache must be contiguous")
    stored_key, stored_value = as_stored(cache.key), as_stored(cache.value)
    scales = scale_kind(cache)
    if interpreted() and cache.key.dtype == torch.bfloat16:  # the interpreter would cut what a GPU rounds
        key, value = key.to(torch.bfloat16), value.to(torch.bfloat16)
    key_scale, value_scale = (key if x is None else x.expand(cache.key.shape[:3])
                              for x in (cache.key_scale, cache.value_scale))
    num_kv_heads, head_dim, value_dim = key.shape[1], key.shape[2], value.shape[2]
    pads = [next_power_of_2(dim) for dim in (head_dim, value_dim)]
    heads = max(1, min(next_power_of_2(num_kv_heads), _WRITE_ELEMENTS // max(pads)))
    with torch.cuda.device_of(key):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        write_kernel[len(key), triton.cdiv(num_kv_heads, heads)](
            key, value, stored_key, stored_value, key_scale, value_scale, slot_mapping.contiguous(), *key.stride()[:2],
            *value.stride()[:2], *stored_key.stride()[:3], *stored_value.stride()[:3],
            *(key_scale.stride() if scales else (0, 0, 0)), *(value_scale.stride() if scales else (0, 0, 0)),
            BLOCK_SIZE=cache.key.shape[1], NUM_KV_HEADS=num_kv_heads, HEADS=heads, HEAD_DIM=head_dim,
            VALUE_DIM=value_dim, HEAD_PAD=pads[0], VALUE_PAD=pads[1], SCALES=scales,
            LIMIT=SCALED_DTYPES.get(cache.key.dtype, 0.0), INTEGER=cache.key.dtype == torch.int8,
            FP8_BITS=stored_key.dtype == torch.uint8)


def copy_rows(source: torch.Tensor, target: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Block sources[i] of source [outer, num_blocks, words] into block targets[i] of target, no block in both.

    Both of one dtype, the last dim contiguous; sources, targets [n] int64 on the same device.
    """
    check_device(source.device)
    outer, _, words = source.shape
    chunk = min(next_power_of_2(words), _COPY_BYTES // source.element_size())
    if not len(sources):
        return
    with torch.cuda.device_of(source):  # type: ignore[no-untyped-call]
        copy_kernel[len(sources), triton.cdiv(words, chunk), outer](
            source, target, sources, targets, words, source.stride(0), source.stride(1), target.stride(0),
            target.stride(1), CHUNK=chunk)
