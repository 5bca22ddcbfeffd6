"""RMS norm and rotary embedding: both backends against the plain formula in float64."""

from __future__ import annotations

import pytest
import torch
from paged_kernels import elementwise

DTYPES = {"float32": (torch.float32, 2**-22), "bfloat16": (torch.bfloat16, 2**-8), "float16": (torch.float16, 2**-10)}


def drawn(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (7, 96), (3, 5, 64), (300, 512)])
def test_rms_norm(backend, dtype, shape):
    kind, unit = DTYPES[dtype]
    x, weight = drawn(*shape, dtype=kind) * 3, drawn(shape[-1], dtype=torch.float32, seed=1)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    out = elementwise(backend).rms_norm(x, weight, 1e-6)
    assert out.dtype == kind
    # Rounded once at the end; in float32 the sum adds an error of its own.
    assert ((out.double() - exact).abs() <= 4 * unit * exact.abs() + 1e-7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary", [8, 48, 64])
def test_rotate(backend, dtype, rotary):
    kind, unit = DTYPES[dtype]
    x = drawn(5, 6, 64, dtype=kind)
    angles = drawn(5, 1, rotary // 2, dtype=torch.float32, seed=2) * 9
    cos, sin = (torch.cat([f, f], -1).to(kind) for f in (angles.cos(), angles.sin()))
    wide, c, s = x[:, :4].double(), cos.double(), sin.double()
    low, high = wide[..., : rotary // 2], wide[..., rotary // 2 : rotary]
    exact = torch.cat([low * c[..., : rotary // 2] - high * s[..., : rotary // 2],
                       high * c[..., rotary // 2 :] + low * s[..., rotary // 2 :], wide[..., rotary:]], -1)
    out = elementwise(backend).rotate(x, 4, cos, sin)
    assert out.shape == (5, 4, 64)
    assert ((out.double() - exact).abs() <= 4 * unit * wide.abs().amax()).all()
    assert torch.equal(out[..., rotary:], x[:, :4, rotary:])


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 3.4e38])
def test_bfloat16_special_values(special):
    x = torch.full((2, 16), 0.5, dtype=torch.bfloat16)
    x[1, 3] = special
    weight = torch.ones(16)
    found, expected = (elementwise(backend).rms_norm(x, weight, 1e-6) for backend in ("numba", "torch"))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[0], expected[0])


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        elementwise("cuda")
