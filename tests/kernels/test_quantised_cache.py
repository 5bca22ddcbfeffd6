"""Keys and values stored in fewer bits: each stored value within its bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paged_kernels import KVCache, dequantise, quantise, write_kv

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
