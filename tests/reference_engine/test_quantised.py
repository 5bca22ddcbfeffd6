"""KV in other dtypes than the model's, and weights in int8: errors bounded, the probe still exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pabench.errors import UsageError
from pabench.probe import PRESETS, build_checkpoint, draw_rings
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.pool import KV_DTYPES, KVPool, kv_dtype
from reference_engine.model.families import read_model_config
from reference_engine.model.layers import product
from reference_engine.model.loader import load_model
from tests.reference_engine.checkpoints import MAX_LEN, Feeder, prompts_of, random_model
from tests.reference_engine.helpers import assert_exact, drain, greedy, ids

CPU = torch.device("cpu")
NARROW = [name for name in KV_DTYPES if name != "float32"]


@pytest.fixture(scope="module")
def gqa_probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "gqa"
    build_checkpoint(PRESETS["gqa"], folder)
    return folder


@pytest.mark.parametrize(("kv", "weights"), [
    ("int8", "auto"), ("fp8", "auto"), ("bfloat16", "auto"), ("float16", "auto"), ("auto", "int8"), ("fp8", "int8"),
])
@pytest.mark.parametrize(("preset", "dtype"), [
    ("tiny", torch.float32), ("tiny", torch.bfloat16), ("gqa", torch.float32),
])
def test_rings_are_exact(tiny_probe, gqa_probe, preset, dtype, kv, weights):
    """Around block edges, with prompts in chunks, and in a pool so small that a sequence is put off and begun anew."""
    config = EngineConfig(max_model_len=256, num_blocks=20, max_num_batched_tokens=100, kv_dtype=kv,
                          weight_dtype=weights, check_integrity=True)
    engine = Engine.from_folder({"tiny": tiny_probe, "gqa": gqa_probe}[preset], config, dtype=dtype)
    assert engine.pool.tensor.dtype == kv_dtype(kv, dtype)
    rings = draw_rings(PRESETS[preset], np.random.default_rng(1), [13, 14, 62, 130])
    requests = [engine.add(ring.prompt, greedy(40)) for ring in rings]
    made = drain(engine)
    assert engine.scheduler.stats.preemptions > 0
    for ring, request in zip(rings, requests, strict=True):
        assert_exact(ring, ids(made[request.id][0]), 40)


@pytest.mark.parametrize(("kv", "near"), [("bfloat16", 0.02), ("float16", 0.003), ("int8", 0.05), ("fp8", 0.3)])
@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_logits_with_a_narrow_cache_are_near(tmp_path, family, kv, near):
    """Whole models have no useful worst-case bound: `near`, a share of the logits' own spread, was seen, with room."""
    changes = {"head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": 13} if family == "Gemma2" else {}
    random_model(tmp_path, family, changes)
    model = load_model(tmp_path, torch.float32, CPU, MAX_LEN)
    wide, narrow = (Feeder(model, prompts_of(40, 9), kv_dtype(name, torch.float32)) for name in ("auto", kv))
    for size in (7, 1, 1, 20, 1, 10):
        exact, got = wide.step(size), narrow.step(size)
        for i, (_, row) in exact.items():
            off = (got[i][1] - row).square().mean().sqrt() / row.std()
            assert 0 < off < near


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Phi3", "Gemma2"])
def test_int8_weights_equal_transformers_on_weights_rounded_alike(tmp_path, family):
    changes = {"head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": 13} if family == "Gemma2" else {}
    theirs = random_model(tmp_path, family, changes)
    for name, weight in theirs.named_parameters():
        if "_proj.weight" in name:
            step = weight.data.abs().amax(1, keepdim=True) / 127
            weight.data = (weight.data / step).round() * step
    feeder = Feeder(load_model(tmp_path, torch.float32, CPU, MAX_LEN, "int8"), prompts_of(40, 9))
    with torch.inference_mode():
        reference = [theirs(torch.tensor([prompt])).logits[0] for prompt in feeder.prompts]
    for size in (7, 1, 1, 40):
        for i, (position, row) in feeder.step(size).items():
            torch.testing.assert_close(row, reference[i][position], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_product_with_an_int8_weight_is_within_its_bound(tmp_path, dtype):
    """Half a step a weight: an output is off by at most |x|_1 * step / 2, and by what `dtype` rounds off."""
    random_model(tmp_path, "Qwen2", {})
    plain, small = (load_model(tmp_path, dtype, CPU, MAX_LEN, weights) for weights in ("auto", "int8"))
    assert torch.equal(plain.embed, small.embed)
    assert torch.equal(plain.lm_head.to_dense(), small.lm_head.to_dense())
    for ours, theirs in zip(plain.layers, small.layers, strict=True):
        for exact, rounded in zip(ours.linears(), theirs.linears(), strict=True):
            assert rounded.weight.dtype == torch.int8
            weight = product(torch.eye(exact.weight.shape[1], dtype=dtype), exact.weight).T.double()
            x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(2)).to(dtype)
            wide = x.double()
            step = weight.abs().amax(1) / 127
            reference = wide @ weight.T + (0 if exact.bias is None else exact.bias.double())
            sums = wide.abs() @ weight.abs().T + reference.abs()
            allowed = wide.abs().sum(1, keepdim=True) * step / 2 + 2 * torch.finfo(dtype).eps * sums
            error = (rounded(x).double() - reference).abs()
            assert (error <= allowed).all()
            assert error.max() > 1e-4, "nothing was rounded"


@pytest.fixture
def geometry(tiny_probe):
    return read_model_config(tiny_probe)


def filled(geometry, num_blocks, dtype):
    """A pool in which each block holds its number, and so do its scales."""
    pool = KVPool(geometry, num_blocks, 4, dtype, CPU)
    for block in range(num_blocks):
        pool.tensor[:, :, block] = torch.tensor(block).to(dtype)
        if pool.scales is not None:
            pool.scales[:, :, block] = block
    return pool


def contents(pool):
    """What each block holds; all of one number, its scales too."""
    values = pool.tensor.float().movedim(2, 0).flatten(1)
    assert (values == values[:, :1]).all()
    if pool.scales is not None:
        assert (pool.scales.movedim(2, 0).flatten(1) == values[:, :1]).all()
    return values[:, 0].int().tolist()


@pytest.mark.parametrize("name", KV_DTYPES)
def test_blocks_are_copied_with_their_scales_as_if_at_once(geometry, name):
    pool = filled(geometry, 6, KV_DTYPES[name])
    pool.copy_blocks([BlockCopy(0, 1), BlockCopy(1, 2), BlockCopy(2, 0), BlockCopy(5, 3)])
    assert contents(pool) == [2, 0, 1, 5, 4, 5]
    pool.copy_blocks([])
    host = filled(geometry, 9, KV_DTYPES[name])
    pool.copy_from(host, [BlockCopy(8, 0), BlockCopy(7, 5)])
    assert contents(pool) == [8, 0, 1, 5, 4, 7]
    assert contents(host) == list(range(9))


@pytest.mark.parametrize("name", KV_DTYPES)
def test_a_pool_counts_its_bytes_and_shows_its_layers(geometry, name):
    pool = KVPool(geometry, 6, 4, KV_DTYPES[name], CPU)
    slots = geometry.num_layers * 2 * 6 * 4 * geometry.num_kv_heads
    scaled = name in ("int8", "fp8")
    assert pool.num_bytes == slots * (geometry.head_dim * KV_DTYPES[name].itemsize + 4 * scaled)
    assert len(pool.layers) == geometry.num_layers
    pool.layers[1].value[3, 2] = torch.tensor(1).to(KV_DTYPES[name])
    assert (pool.tensor[1, 1, 3, 2].float() == 1).all()
    if pool.scales is None:
        assert pool.layers[1].value_scale is None
    else:
        pool.layers[1].value_scale[3, 2] = 7
        assert (pool.scales[1, 1, 3, 2] == 7).all()


def test_pools_of_other_geometry_do_not_mix(geometry):
    pool = KVPool(geometry, 6, 4, torch.float32, CPU)
    for other in (KVPool(geometry, 6, 8, torch.float32, CPU), KVPool(geometry, 6, 4, torch.int8, CPU)):
        with pytest.raises(ValueError, match="cannot be copied into"):
            pool.copy_from(other, [BlockCopy(0, 0)])


def test_names_of_kv_dtypes():
    assert kv_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert kv_dtype("fp8", torch.bfloat16) == torch.float8_e4m3fn
    with pytest.raises(UsageError, match="'fp4' is unknown, expected one of auto, float32"):
        kv_dtype("fp4", torch.float32)
