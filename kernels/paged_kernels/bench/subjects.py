"""Our kernels and their peers: each makes of a batch one call. A peer that cannot be imported is listed with why."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from paged_kernels.attention import plan_attention
from paged_kernels.bench.shapes import Shape
from paged_kernels.bench.timing import Calls
from paged_kernels.cache import SCALED_DTYPES, KVCache

_NEEDLE_SCORE = 20.0  # exp(20) outweighs 128K random keys
# Timed for what is compiled anew for each of them: each such takes seconds of the bench's minutes.
_FEW = {("Llama-8B", 16, *which) for which in ((1, 8192), (1, 131072), (8, 32768), (32, 4096), (256, 4096))}
_EDGE = 1024          # positions: splits end at its multiples
_WHOLE_TILES = 128    # positions: a block of a multiple of these has whole tiles alone


@dataclass(frozen=True, slots=True)
class Data:
    """A batch on the device. `caches` are copies, so that calls can take turns over them."""

    shape: Shape
    query: torch.Tensor                # [batch * rows, num_q_heads, head_dim]
    caches: list[KVCache]
    block_tables: torch.Tensor         # [batch, blocks], int32
    contexts: torch.Tensor             # [batch], int32
    query_start_loc: torch.Tensor      # [batch + 1], int32

    @property
    def scale(self) -> float:
        """Of scores."""
        return float(self.shape.head_dim**-0.5)


def draw(shape: Shape, copies: int, where: torch.device, seed: int = 0) -> Data:
    """Random data; blocks in random order in a pool of just their number."""
    random = torch.Generator(where).manual_seed(seed)
    blocks = -(-shape.context // shape.block_size)
    kv = (shape.batch * blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)

    def stored() -> torch.Tensor:
        drawn = torch.randn(kv, generator=random, device=where, dtype=shape.query_dtype)
        return drawn.to(shape.storage_dtype)

    one = torch.ones((), device=where) if shape.storage_dtype in SCALED_DTYPES else None
    query = torch.randn((shape.batch * shape.rows, shape.num_q_heads, shape.head_dim), generator=random, device=where,
                        dtype=shape.query_dtype)
    tables = torch.randperm(shape.batch * blocks, generator=random, device=where).view(shape.batch, blocks).int()
    data = Data(shape, query, [KVCache(stored(), stored(), one, one) for _ in range(copies)], tables,
                torch.full((shape.batch,), shape.context, dtype=torch.int32, device=where),
                torch.arange(0, shape.batch * shape.rows + 1, shape.rows, dtype=torch.int32, device=where))
    _plant_needles(data)
    return data


def _plant_needles(data: Data) -> None:
    """Some checked queries look for one key of the first cache alone: without that position the result is another.

    Such a query is the key, as long as gives it the score _NEEDLE_SCORE. The positions: the first, both sides of the
    last edge between splits, the row's own. The last head of a group stays random: it sees all positions.
    """
    shape = data.shape
    seqs, rows, heads = shape.checked
    group = shape.num_q_heads // shape.num_kv_heads
    for seq, row, head in itertools.product(seqs, rows, heads):
        last = shape.context - shape.rows + row
        edge = last // _EDGE * _EDGE
        positions = (edge, last, max(0, edge - 1), 0)
        for member in range(min(len(positions), group - 1)):
            position = positions[(member + seq + row + head) % len(positions)]
            block = int(data.block_tables[seq, position // shape.block_size])
            key = data.caches[0].key[block, position % shape.block_size, head].float()
            needle = key * (_NEEDLE_SCORE / (data.scale * float(key @ key)))
            data.query[seq * shape.rows + row, head * group + member] = needle.to(data.query.dtype)


def contiguous(data: Data, cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a batch in a row: [batch, num_kv_heads, context, head_dim]."""
    tables = data.block_tables.long()
    key, value = (part[tables].flatten(1, 2)[:, : data.shape.context].transpose(1, 2).contiguous()
                  for part in (cache.key, cache.value))
    return key, value


def _ours(data: Data) -> Calls:
    plan = plan_attention(data.block_tables, data.contexts, data.query_start_loc, data.shape.block_size,
                          backend="triton")
    return lambda i: plan.attend(data.query, data.caches[i], scale=data.scale)


def _ours_in_a_row(data: Data) -> Calls:
    """The same kernel with each sequence in one block of its own, in order: what ours takes longer is what blocks cost.

    Compiled for that block size: whole tiles lie in a block, and one look-up serves all of a tile.
    """
    _need_few(data)
    shape, where = data.shape, data.query.device
    size = -(-shape.context // _WHOLE_TILES) * _WHOLE_TILES
    caches = [KVCache(*(_in_a_row(part, data, size) for part in (cache.key, cache.value)),
                      cache.key_scale, cache.value_scale) for cache in data.caches]
    tables = torch.arange(shape.batch, dtype=torch.int32, device=where)[:, None]
    plan = plan_attention(tables, data.contexts, data.query_start_loc, size, backend="triton")
    return lambda i: plan.attend(data.query, caches[i], scale=data.scale)


def _in_a_row(part: torch.Tensor, data: Data, size: int) -> torch.Tensor:
    """[batch, size, num_kv_heads, head_dim]: keys or values of each sequence one behind the other, then zeros."""
    row = part.new_zeros(data.shape.batch, size, *part.shape[2:])
    as_bytes = part.view(torch.uint8) if part.dtype in SCALED_DTYPES else part  # torch indexes no fp8 everywhere
    filled = row.view(torch.uint8) if part.dtype in SCALED_DTYPES else row
    filled[:, : data.shape.context] = as_bytes[data.block_tables.long()].flatten(1, 2)[:, : data.shape.context]
    return row


def _queries(data: Data) -> torch.Tensor:
    shape = data.shape
    return data.query.view(shape.batch, shape.rows, shape.num_q_heads, shape.head_dim).transpose(1, 2).contiguous()


def _back(out: torch.Tensor) -> torch.Tensor:
    return out.transpose(1, 2).flatten(0, 1)


def _sdpa(data: Data) -> Calls:
    _need(data, data.shape.rows in (1, data.shape.context), "queries that are not the whole context")
    query, parts = _queries(data), [contiguous(data, cache) for cache in data.caches]
    return lambda i: _back(F.scaled_dot_product_attention(
        query, *parts[i], is_causal=data.shape.rows > 1, scale=data.scale, enable_gqa=True))


def _flex(data: Data) -> Calls:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape = data.shape
    _need_few(data)
    query, parts = _queries(data), [contiguous(data, cache) for cache in data.caches]
    first = shape.context - shape.rows
    mask = None if shape.rows == 1 else create_block_mask(
        lambda _b, _h, row, position: first + row >= position, None, None, shape.rows, shape.context,
        device=str(query.device))
    run: Any = flex_attention
    if query.is_cuda:  # compiled for this shape alone: of a dynamic one, or after too many, it would be slower
        torch._dynamo.reset()
        run = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda i: _back(run(query, *parts[i], block_mask=mask, scale=data.scale, enable_gqa=True))


def _flashinfer(data: Data) -> Calls:
    library, shape = importlib.import_module("flashinfer"), data.shape
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=data.query.device)
    blocks = data.block_tables.shape[1]
    starts = torch.arange(0, shape.batch * blocks + 1, blocks, dtype=torch.int32, device=data.query.device)
    last = torch.full_like(data.contexts, shape.context - (blocks - 1) * shape.block_size)
    heads = (shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.block_size)
    types = {"q_data_type": shape.query_dtype, "kv_data_type": shape.storage_dtype, "sm_scale": data.scale}
    if shape.rows == 1:
        wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(starts, data.block_tables.flatten(), last, *heads, **types)
    else:
        wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(data.query_start_loc, starts, data.block_tables.flatten(), last, *heads, causal=True, **types)
    return lambda i: wrapper.run(data.query, (data.caches[i].key, data.caches[i].value))


def _flash_attention(data: Data) -> Calls:
    library, shape = importlib.import_module("flash_attn"), data.shape
    _need(data, shape.block_size % 256 == 0, "blocks that are no multiple of 256 tokens")
    query = data.query.view(shape.batch, shape.rows, shape.num_q_heads, shape.head_dim)
    return lambda i: library.flash_attn_with_kvcache(
        query, data.caches[i].key, data.caches[i].value, cache_seqlens=data.contexts, block_table=data.block_tables,
        causal=True, softmax_scale=data.scale).flatten(0, 1)


def _need_few(data: Data) -> None:
    shape = data.shape
    if shape.model != "tiny" and (shape.model, shape.block_size, shape.batch, shape.context) not in _FEW:
        raise NotImplementedError("timed on a few shapes only: it compiles for each")


def _need(data: Data, fulfilled: bool, what: str) -> None:
    if not fulfilled:
        raise NotImplementedError(f"it does not take {what}")


OURS = "paged_kernels"
IN_A_ROW = "ours, one block a sequence"
SUBJECTS: dict[str, Callable[[Data], Calls]] = {
    OURS: _ours, IN_A_ROW: _ours_in_a_row, "sdpa, contiguous": _sdpa, "flex_attention, contiguous": _flex,
    "flashinfer": _flashinfer, "flash_attn": _flash_attention,
}
_PACKAGES = {"flashinfer": "flashinfer", "flash_attn": "flash_attn"}
_SCALED_TOO = (OURS, IN_A_ROW, "flashinfer")  # those that read fp8


def missing() -> dict[str, str]:
    """Peers that are not here, and why."""
    found = {}
    for name, package in _PACKAGES.items():
        try:
            importlib.import_module(package)
        except Exception as error:  # a broken installation raises anything
            found[name] = f"{type(error).__name__}: {error}"
    return found


def make(name: str, data: Data) -> Any:
    """The call of a subject on a batch. Raises whatever it says against the batch."""
    if data.shape.storage_dtype in SCALED_DTYPES and name not in _SCALED_TOO:
        raise NotImplementedError(f"it does not take a cache in {data.shape.storage}")
    return SUBJECTS[name](data)
