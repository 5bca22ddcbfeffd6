"""From tensors to a kernel launch: what the kernels are compiled for, and what they are given."""

from __future__ import annotations

from typing import NamedTuple

import torch

from paged_kernels.cache import SCALED_DTYPES, KVCache
from paged_kernels.scoring import Scoring
from paged_kernels.triton_backend.attend import NO_SCALE, SCALE_A_HEAD, SCALE_A_SLOT, attend_kernel, merge_kernel
from paged_kernels.triton_backend.device import check_device, interpreted, reads_fp8, target_of
from paged_kernels.triton_backend.tiles import AMD_SHARED_BYTES, MAX_GROUP, Geometry, Tile, next_power_of_2

QUERY_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MERGE_PARTS = 8  # parts that a merging program reads at once


def geometry_of(query: torch.Tensor, cache: KVCache, num_rows: int) -> Geometry:
    """What the kernel has to be compiled for. Raises ValueError for what it cannot do."""
    num_kv_heads, num_q_heads = cache.key.shape[2], query.shape[1]
    group = num_q_heads // num_kv_heads
    if query.dtype not in QUERY_DTYPES:
        raise ValueError(f"attention backend 'triton' computes in float32, float16 or bfloat16, got {query.dtype}: "
                         "choose backend 'torch'")
    if len(query) != num_rows or num_q_heads != group * num_kv_heads or query.shape[2] != cache.key.shape[3]:
        raise ValueError(f"query {list(query.shape)} over keys {list(cache.key.shape)}: expected [{num_rows}, a "
                         f"multiple of {num_kv_heads} heads, {cache.key.shape[3]}]")
    if group > MAX_GROUP:
        raise ValueError(f"{group} query heads a KV head, attention backend 'triton' takes at most {MAX_GROUP}")
    room = next_power_of_2(group) * next_power_of_2(max(query.shape[2], cache.value.shape[3])) * query.element_size()
    if room > AMD_SHARED_BYTES and target_of(query.device) == "amd":
        raise ValueError(f"{group} query heads of {query.shape[2]} in {query.dtype} a KV head take {room >> 10} KiB of "
                         f"shared memory, an AMD GPU has {AMD_SHARED_BYTES >> 10}: choose backend 'torch'")
    if any(x.stride(-1) != 1 for x in (query, cache.key, cache.value)):
        raise ValueError("the last dim of query, key and value must be contiguous, got strides "
                         f"{query.stride()}, {cache.key.stride()}, {cache.value.stride()}")
    return Geometry(num_kv_heads, group, query.shape[2], cache.value.shape[3], query.dtype, cache.key.dtype)


class Parts(NamedTuple):
    """Partial results, each normalised by its own sum. Contiguous, float32."""

    out: torch.Tensor  # [num_parts, num_q_heads, value_dim]
    lse: torch.Tensor  # [num_parts, num_q_heads]


def launch_attend(
    tile: Tile, geometry: Geometry, scoring: Scoring, query: torch.Tensor, cache: KVCache, tables: torch.Tensor,
    positions: torch.Tensor, items: torch.Tensor, num_items: torch.Tensor, programs: int, out: torch.Tensor,
    lse: torch.Tensor | None, parts: Parts,
) -> None:
    """attend_kernel over `items`; tensors as there. `programs` a KV head."""
    key, value = as_stored(cache.key), as_stored(cache.value)
    key_scale, value_scale = (query if x is None else x.expand(cache.key.shape[:3])
                              for x in (cache.key_scale, cache.value_scale))
    scales, slopes = scale_kind(cache), scoring.alibi_slopes
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        attend_kernel[(programs * geometry.num_kv_heads,)](
            query, key, value, key_scale, value_scale, query if slopes is None else slopes.contiguous(), tables,
            positions, items, num_items, out, out if lse is None else lse, *parts,
            float(scoring.scale), float(scoring.soft_cap or 0), scoring.window or 0, query.stride(0), query.stride(1),
            *key.stride()[:3], *value.stride()[:3], *(key_scale.stride() if scales else (0, 0, 0)),
            *(value_scale.stride() if scales else (0, 0, 0)), tables.stride(0), out.stride(0), out.stride(1),
            **constants(geometry, tile, cache.key.shape[1], window=scoring.window is not None,
                        soft_cap=scoring.soft_cap is not None, alibi=slopes is not None, scales=scales,
                        fp8_bits=key.dtype == torch.uint8, lse=lse is not None),
            num_warps=tile.num_warps, num_stages=tile.num_stages)


def constants(
    geometry: Geometry, tile: Tile, block_size: int, *, window: bool, soft_cap: bool, alibi: bool, scales: int,
    fp8_bits: bool, lse: bool,
) -> dict[str, int | bool]:
    """The compile-time arguments of attend_kernel."""
    return {
        "NUM_KV_HEADS": geometry.num_kv_heads, "GROUP": geometry.group, "BLOCK_SIZE": block_size,
        "HEAD_DIM": geometry.head_dim, "VALUE_DIM": geometry.value_dim,
        "HEAD_PAD": max(16, next_power_of_2(geometry.head_dim)),
        "VALUE_PAD": max(16, next_power_of_2(geometry.value_dim)),
        "BLOCK_M": tile.block_m, "TILE": tile.tile, "HAS_WINDOW": window, "HAS_CAP": soft_cap, "HAS_ALIBI": alibi,
        "SCALES": scales, "FP8_BITS": fp8_bits, "WITH_LSE": lse,
        "WIDEN": interpreted() and geometry.query == torch.bfloat16,
    }


def merge_all(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `paged_kernels.attention.merge_states`."""
    check_device(outs.device)
    num_parts, num_rows, heads, dim = outs.shape
    part_rows = torch.arange(num_parts * num_rows, dtype=torch.int32, device=outs.device).view(num_parts, num_rows)
    part_starts = torch.arange(0, num_parts * num_rows + 1, num_parts, dtype=torch.int32, device=outs.device)
    # Contiguous, whatever the strides of the parts (empty_like would keep those): merge_kernel writes rows of lse, and
    # the elements of a row of out, one behind the other.
    out, lse = outs.new_empty(num_rows, heads, dim), lses.new_empty(num_rows, heads, dtype=torch.float32)
    parts = Parts(outs.float().contiguous().view(-1, heads, dim), lses.float().contiguous().view(-1, heads))
    launch_merge(parts, part_starts, part_rows.T.contiguous(), out, lse)
    return out, lse


def launch_merge(
    parts: Parts, part_starts: torch.Tensor, part_rows: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None
) -> None:
    """Fill the rows of out [rows, heads, dim] and lse [rows, heads] that have parts.

    Row r is made of the parts part_rows[part_starts[r] : part_starts[r + 1]], int32.
    """
    rows, heads, dim = out.shape
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        merge_kernel[rows, heads](
            *parts, part_starts, part_rows, out, out if lse is None else lse, out.stride(0), out.stride(1),
            NUM_Q_HEADS=heads, VALUE_DIM=dim, VALUE_PAD=next_power_of_2(dim), PARTS=_MERGE_PARTS,
            WITH_LSE=lse is not None, num_warps=1)


def as_stored(x: torch.Tensor) -> torch.Tensor:
    """`x` in a dtype that the target can read: fp8 as the bytes it is, where the target has no such type."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn and not reads_fp8(x.device) else x


def scale_kind(cache: KVCache) -> int:
    """Which of attend's kinds of scale the cache has. Raises ValueError where the two halves differ."""
    if (cache.key.dtype in SCALED_DTYPES) != (cache.key_scale is not None and cache.value_scale is not None):
        raise ValueError(f"a cache of {cache.key.dtype} {'with' if cache.key_scale is not None else 'without'} scales: "
                         f"they belong to {', '.join(map(str, SCALED_DTYPES))}, keys and values alike, and to no other")
    if cache.key_scale is None or cache.value_scale is None:
        return NO_SCALE.value
    if (cache.key_scale.dim() == 3) != (cache.value_scale.dim() == 3):
        raise ValueError(f"key scales {list(cache.key_scale.shape)} and value scales {list(cache.value_scale.shape)}: "
                         "expected both a slot and head, or both a head or tensor")
    return SCALE_A_SLOT.value if cache.key_scale.dim() == 3 else SCALE_A_HEAD.value
