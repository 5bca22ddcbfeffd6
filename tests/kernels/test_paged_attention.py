"""What is our API's own about attention and the cache; that it is dense attention, test_conformance shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged_kernels import KVCache, paged_attention, plan_attention, write_kv
from torch.utils._python_dispatch import TorchDispatchMode

from pabench.conformance.kernel.cases import AttendCase, CacheForm
from pabench.conformance.kernel.drawing import draw_attend
from pabench.conformance.kernel.tolerance import expect

CASE = AttendCase((100, 40, 70), (1, 7, 1), CacheForm(num_kv_heads=2, head_dim=32, value_dim=32), group=2)


def test_one_plan_serves_layers_with_several_windows(backend):
    drawn = draw_attend(CASE)
    batch = drawn.batch
    plan = plan_attention(batch.block_tables, batch.context_lens, batch.query_start_loc, 16, backend=backend)
    for window in (None, 20, 5, 20, 1000, None):
        expected = expect(replace(drawn.content, window=window), torch.float32)
        out = plan.attend(batch.query, KVCache(*batch.cache), scale=batch.scale, window=window)
        assert ((out - expected.exact.out).abs().amax(-1) <= expected.out_error).all()


def test_float64_is_exact(backend):
    """The suite knows no float64; both backends for the CPU compute in it."""
    for case in (CASE, replace(CASE, window=17, soft_cap=2.0)):
        drawn = draw_attend(case)
        batch, cache = drawn.batch, KVCache(*(x.double() for x in drawn.batch.cache[:2]))
        out = paged_attention(batch.query.double(), cache, batch.block_tables, batch.context_lens,
                              batch.query_start_loc, batch.scale, window=case.window, soft_cap=case.soft_cap,
                              backend=backend)
        torch.testing.assert_close(out, expect(drawn.content, torch.float32).exact.out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_write_kv_touches_the_named_slots_only(dtype):
    cache = KVCache(*(torch.full((4, 8, 2, 4), torch.nan, dtype=dtype) for _ in range(2)))
    slots = torch.tensor([31, 0, 9])
    new = torch.randn(3, 2, 4)
    write_kv(new, -new, cache, slots)
    flat = cache.key.view(32, 2, 4)
    assert torch.equal(flat[slots], new.to(dtype))
    assert torch.equal(cache.value.view(32, 2, 4)[slots], -new.to(dtype))
    assert int(flat.isnan().any(-1).any(-1).sum()) == 29


def test_an_impossible_batch_is_refused(backend):
    batch = draw_attend(AttendCase((4, 4), (1, 1))).batch
    tables, lens, starts = batch.block_tables, batch.context_lens, batch.query_start_loc
    with pytest.raises(ValueError, match="unknown attention backend 'cuda'"):
        plan_attention(tables, lens, starts, 16, backend="cuda")
    with pytest.raises(ValueError, match="do not agree"):
        plan_attention(tables, lens, starts[:-1], 16, backend=backend)
    with pytest.raises(ValueError, match="5 query rows for a context of 4"):
        plan_attention(tables, lens, torch.tensor([0, 5, 6]), 16, backend=backend)
    with pytest.raises(ValueError, match="a window of 0 positions"):
        paged_attention(batch.query, KVCache(*batch.cache), tables, lens, starts, 1.0, window=0, backend=backend)


def test_a_prefill_without_alibi_keeps_no_distances():
    """They are eight bytes for each pair of a row and a position, as much again as eight masks."""
    batch = draw_attend(AttendCase((200,), (60,))).batch
    sizes = {}

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                sizes[made.dtype] = max(sizes.get(made.dtype, 0), made.numel())
            return made

    for window in (None, 50):
        with Watched():
            paged_attention(batch.query, KVCache(*batch.cache), batch.block_tables, batch.context_lens,
                            batch.query_start_loc, batch.scale, window=window)
    assert sizes[torch.bool] == 60 * 200
    assert sizes[torch.int64] < 60 * 109, "as many positions as any row sees in the window"


def test_after_inference_mode_it_still_works_outside(backend):
    """What is kept between calls must not be tied to the mode of the first one."""
    batch = draw_attend(CASE).batch
    cache = KVCache(*batch.cache)

    def attend():
        return paged_attention(batch.query, cache, batch.block_tables, batch.context_lens, batch.query_start_loc,
                               batch.scale, backend=backend)

    with torch.inference_mode():
        first = attend()
    assert torch.equal(attend(), first)
