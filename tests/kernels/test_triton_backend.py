"""What the Triton backend adds to what the conformance suite asks of every backend."""

from __future__ import annotations

import pytest
import torch
from paged_kernels import AttentionPlan, KVCache, copy_blocks, merge_states, plan_attention, write_kv
from paged_kernels.triton_backend import launch
from paged_kernels.triton_backend.plan import Capacity, TritonPlan

ROWS = 3
LENS = [(40, 700, 0), (1300, 513, 5), (1, 0, 512), (0, 0, 0)]  # below, at and above the split of 512 positions


@pytest.mark.parametrize("window", [None, 530])
@pytest.mark.parametrize("programs", [1, 4])
def test_a_refilled_plan_is_a_new_one(programs, window):
    """Fixed buffers and grids, however many work items and parts the batch before had."""
    block_size, width = 16, 90
    rng = torch.Generator().manual_seed(1)
    cache = KVCache(*(torch.randn(ROWS * width, block_size, 1, 16, generator=rng) for _ in range(2)))
    query = torch.randn(ROWS, 2, 16, generator=rng)
    starts = torch.arange(ROWS + 1)
    kept = None
    for lens in LENS:
        tables = torch.randperm(ROWS * width, generator=rng).view(ROWS, width)
        contexts = torch.tensor(lens)
        if kept is None:
            room = Capacity(ROWS, width * block_size, programs)
            plan = TritonPlan(tables, contexts, starts, block_size, capacity=room)
            kept = AttentionPlan(plan, "triton")
        else:
            plan.refill(tables, contexts)
        new = plan_attention(tables, contexts, starts, block_size, backend="triton")
        for ours, theirs in zip(kept.attend_with_lse(query, cache, scale=0.3, window=window),
                                new.attend_with_lse(query, cache, scale=0.3, window=window), strict=True):
            assert torch.equal(ours, theirs), lens


def test_a_plan_without_a_capacity_is_not_refilled():
    plan = TritonPlan(torch.zeros(1, 1), torch.ones(1, dtype=torch.int64), torch.arange(2), 16)
    with pytest.raises(ValueError, match="only a plan with a capacity"):
        plan.refill(torch.zeros(1, 1), torch.ones(1, dtype=torch.int64))


@pytest.mark.parametrize("scale", [(), (2,), (6, 8, 2)], ids=["tensor", "head", "slot"])
def test_fp8_is_read_alike_as_a_type_and_as_bytes(monkeypatch, scale):
    """By targets that have the type and by those that have not. Written as bytes: the interpreter's own conversion
    loses the carry of a mantissa that rounds up to the next power of 2. Alike to float32's rounding, not to the bit:
    the tiles lie differently in memory, and some CPUs' matrix products then add in another order."""
    rng = torch.Generator().manual_seed(2)
    stored = torch.zeros(6, 8, 2, 24).to(torch.float8_e4m3fn)
    cache = KVCache(stored, stored.clone(), torch.full(scale, 0.05), torch.full(scale, 0.05))
    key, value = torch.randn(2, 20, 2, 24, generator=rng)
    write_kv(key, value, cache, torch.arange(20) + 8, backend="triton")
    query = torch.randn(2, 4, 24, generator=rng)
    plan = plan_attention(torch.tensor([[1, 2, 3]]), torch.tensor([20]), torch.tensor([0, 2]), 8, backend="triton")
    as_bytes = plan.attend(query, cache, scale=0.2)
    monkeypatch.setattr(launch, "reads_fp8", lambda _device: True)
    torch.testing.assert_close(plan.attend(query, cache, scale=0.2), as_bytes, atol=2e-6, rtol=0.0)


@pytest.mark.parametrize(("query", "kv_heads", "message"), [
    (torch.zeros(1, 2, 16, dtype=torch.float64), 1, "float32, float16 or bfloat16, got torch.float64"),
    (torch.zeros(1, 129, 16), 1, "129 query heads a KV head"),
    (torch.zeros(1, 3, 16), 2, "a multiple of 2 heads"),
    (torch.zeros(2, 2, 16), 1, r"expected \[1, "),
    (torch.zeros(1, 16, 2).transpose(1, 2), 1, "last dim of query, key and value must be contiguous"),
])
def test_what_the_backend_cannot_do_is_refused(query, kv_heads, message):
    cache = KVCache(*(torch.zeros(1, 4, kv_heads, 16, dtype=query.dtype) for _ in range(2)))
    plan = plan_attention(torch.zeros(1, 1), torch.ones(1), torch.arange(2), 4, backend="triton")
    with pytest.raises(ValueError, match=message):
        plan.attend(query, cache, scale=1.0)


def test_a_backend_that_is_not_known_moves_nothing():
    cache = KVCache(*(torch.zeros(2, 4, 1, 8) for _ in range(2)))
    new = torch.ones(1, 1, 8)
    for move in (lambda: write_kv(new, new, cache, torch.tensor([0]), backend="numba"),
                 lambda: copy_blocks(cache.key[None], cache.value[None], torch.tensor([[0, 1]]), backend="cuda"),
                 lambda: merge_states(torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1), backend="numba")):
        with pytest.raises(ValueError, match="unknown backend"):
            move()
    assert not cache.key.any()


def test_a_plan_tells_where_it_runs():
    plan = plan_attention(torch.zeros(1, 1), torch.ones(1), torch.arange(2), 16, backend="triton")
    assert plan.describe().startswith("1 sequences in triton on ")
