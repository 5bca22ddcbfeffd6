"""Keys and values stored in fewer bits: each stored value within its bound, and attention within what follows from it.

With stored keys k' and values v' that are off by at most e_k and e_v (largest element), a score q.k * scale moves by at
most d = |q|_1 * e_k * scale, so that each softmax weight keeps its value within a factor e^(2d). The output, a weighted
mean of values no larger than V, then moves by at most (e^(2d) - 1) * V + e_v.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paged_kernels import KVCache, dequantise, paged_attention, quantise, write_kv

SCALED = [torch.int8, torch.float8_e4m3fn]


def error_bound(x, dtype):
    """Largest error of each stored element of x [..., n]: half a step of int8; half an ulp or a subnormal of fp8."""
    top = x.abs().amax(-1, keepdim=True)
    if dtype == torch.int8:
        return top / 127 / 2
    return torch.maximum(x.abs() / 16, top / 448 * 2**-10)


@pytest.mark.parametrize("dtype", SCALED)
@given(
    rows=st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=8),
    magnitude=st.sampled_from([1e-20, 1e-3, 1.0, 1e20]),
)
def test_a_stored_value_is_within_its_bound(dtype, rows, magnitude):
    x = torch.tensor(rows, dtype=torch.float32) * magnitude
    stored, scale = quantise(x, dtype)
    back = dequantise(stored, scale, torch.float32).double()
    assert (stored.dtype, scale.shape) == (dtype, x.shape[:-1])
    allowed = error_bound(x.double(), dtype) * (1 + 1e-5) + 1e-36
    assert ((back - x.double()).abs() <= allowed).all()


def test_zeros_stay_zeros():
    for dtype in SCALED:
        stored, scale = quantise(torch.zeros(2, 3), dtype)
        assert torch.equal(dequantise(stored, scale, torch.float32), torch.zeros(2, 3))


def caches(lens, kv_heads, head_dim, dtype, block_size=8):
    """The same random keys and values in a float32 cache and in one of `dtype`, and their block tables."""
    rng = torch.Generator().manual_seed(3)
    blocks = [math.ceil(n / block_size) for n in lens]
    shape = (sum(blocks) + 1, block_size, kv_heads, head_dim)
    plain = KVCache(*(torch.full(shape, math.nan) for _ in range(2)))
    scaled = dtype in SCALED
    small = KVCache(
        *(torch.zeros(shape, dtype=dtype) for _ in range(2)),
        *(torch.full(shape[:-1], math.nan) for _ in range(2 if scaled else 0)),
    )
    order = torch.randperm(shape[0], generator=rng).tolist()
    tables = torch.full((len(lens), max(blocks)), -1)
    for seq, n in enumerate(lens):
        tables[seq, : blocks[seq]] = torch.tensor([order.pop() for _ in range(blocks[seq])])
        positions = torch.arange(n)
        slots = tables[seq][positions // block_size] * block_size + positions % block_size
        k, v = torch.randn(2, n, kv_heads, head_dim, generator=rng) * torch.tensor([0.02, 3.0])[:, None, None, None]
        write_kv(k, v, plain, slots)
        write_kv(k, v, small, slots)
    return plain, small, tables


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", SCALED)
def test_attention_moves_by_no_more_than_the_stored_errors_explain(backend, dtype, head_dim, soft_cap):
    lens, query_lens, window = [1, 40, 33, 70], [1, 1, 20, 1], 30
    plain, small, tables = caches(lens, 2, head_dim, dtype)
    query = torch.randn(sum(query_lens), 6, head_dim, generator=torch.Generator().manual_seed(4)) * 0.3
    starts = torch.tensor([0, *torch.tensor(query_lens).cumsum(0).tolist()])
    scale = head_dim**-0.5
    exact, got = (
        paged_attention(query, cache, tables, torch.tensor(lens), starts, scale, window=window, soft_cap=soft_cap,
                        backend=backend)
        for cache in (plain, small)
    )
    e_k, e_v = (float(error_bound(x[~x.isnan().any(-1)], dtype).max()) for x in (plain.key, plain.value))
    moved = (query.abs().sum(-1) * e_k * scale)[..., None]  # of a score; a soft cap only shrinks it
    allowed = torch.expm1(2 * moved) * plain.value.nan_to_num().abs().max() + e_v
    assert allowed.max() < 1.5, "the bound says nothing"
    assert ((got - exact).abs() <= allowed + 1e-5).all()
    assert (got - exact).abs().max() > 1e-4, "nothing was quantised"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_cache_under_float32_queries_reads_the_rounded_values(backend, dtype):
    plain, small, tables = caches([40, 9], 2, 32, dtype)
    rounded = KVCache(plain.key.to(dtype).float(), plain.value.to(dtype).float())
    query = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(4))
    half, full = (
        paged_attention(query, cache, tables, torch.tensor([40, 9]), torch.tensor([0, 1, 2]), 0.2, backend=backend)
        for cache in (small, rounded)
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


@pytest.mark.parametrize("dtype", SCALED)
def test_write_kv_touches_the_scales_and_values_of_the_named_slots_only(dtype):
    rows = torch.full((4, 8, 2, 4), 1.0).to(dtype)
    cache = KVCache(rows, rows.clone(), torch.full((4, 8, 2), math.nan), torch.full((4, 8, 2), math.nan))
    slots, new = torch.tensor([31, 0, 9]), torch.tensor([[[2.0, -4.0, 0.0, 1.0]] * 2] * 3)
    write_kv(new, -new, cache, slots)
    for stored, scale, expected in ((cache.key, cache.key_scale, new), (cache.value, cache.value_scale, -new)):
        back = dequantise(stored.view(32, 2, 4), scale.view(32, 2), torch.float32)
        torch.testing.assert_close(back[slots], expected, rtol=0.01, atol=0.02)
        assert int(back.isnan().all(-1).all(-1).sum()) == 29
        untouched = stored.view(32, 2, 4).float()[torch.ones(32).index_fill(0, slots, 0).bool()]
        assert (untouched == 1).all()
