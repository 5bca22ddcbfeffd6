"""Paged attention against dense attention in float64; what must not be read holds NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paged_kernels import KVCache, paged_attention, plan_attention, write_kv


class Case:
    """A batch with a permuted block table.

    Slots that no query row sees, and blocks of unused table entries, are NaN; entries wholly behind the window are -1.
    """

    def __init__(
        self, lens, query_lens, *, block_size=16, kv_heads=2, group=2, head_dim=32, dtype=torch.float64, seed=0,
        window=None, soft_cap=None,
    ):
        rng = torch.Generator().manual_seed(seed)
        blocks = [math.ceil(n / block_size) for n in lens]
        width, total = max(blocks) + 1, sum(blocks) + 2
        order = torch.randperm(total, generator=rng).tolist()
        poison = order.pop()  # what unused table entries point at
        key_cache = torch.full((total, block_size, kv_heads, head_dim), math.nan, dtype=dtype)
        self.cache = KVCache(key_cache, key_cache.clone())
        self.tables = torch.full((len(lens), width), poison, dtype=torch.int32)
        self.keys, self.values = [], []
        for seq, (n, m) in enumerate(zip(lens, query_lens, strict=True)):
            table = [order.pop() for _ in range(blocks[seq])]
            k, v = (torch.randn(n, kv_heads, head_dim, generator=rng, dtype=torch.float64).to(dtype) for _ in range(2))
            first = 0 if window is None else max(0, n - m - window + 1)  # the first position that any row sees
            slots = torch.tensor([table[p // block_size] * block_size + p % block_size for p in range(first, n)])
            write_kv(k[first:], v[first:], self.cache, slots)
            for behind in range(first // block_size):
                table[behind] = -1
            self.tables[seq, : len(table)] = torch.tensor(table)
            self.keys.append(k)
            self.values.append(v)
        self.lens, self.query_lens = lens, query_lens
        self.context_lens = torch.tensor(lens, dtype=torch.int32)
        self.starts = torch.tensor([0, *torch.tensor(query_lens).cumsum(0).tolist()], dtype=torch.int32)
        shape = (sum(query_lens), kv_heads * group, head_dim)
        self.query = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
        self.scale, self.window, self.soft_cap = head_dim**-0.5, window, soft_cap

    def paged(self, backend):
        return paged_attention(
            self.query, self.cache, self.tables, self.context_lens, self.starts, self.scale,
            window=self.window, soft_cap=self.soft_cap, backend=backend,
        )

    def dense(self, dtype=torch.float64):
        """Dense attention computed in `dtype`, one row at a time."""
        out, row = [], 0
        for k, v, n, m in zip(self.keys, self.values, self.lens, self.query_lens, strict=True):
            group = self.query.shape[1] // k.shape[1]
            k64, v64 = (x.to(dtype).repeat_interleave(group, dim=1) for x in (k, v))
            for j in range(m):
                seen = n - m + j + 1
                first = 0 if self.window is None else max(0, seen - self.window)
                scores = torch.einsum("hd,phd->hp", self.query[row].to(dtype), k64[first:seen]) * self.scale
                if self.soft_cap is not None:
                    scores = self.soft_cap * (scores / self.soft_cap).tanh()
                out.append(torch.einsum("hp,phd->hd", scores.softmax(-1), v64[first:seen]))
                row += 1
        return torch.stack(out)

    def assert_equal(self, backend):
        torch.testing.assert_close(self.paged(backend), self.dense(), rtol=0, atol=1e-12)


EDGES = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129]


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (1, 4), (2, 2), (4, 1), (2, 3), (1, 71)])
def test_decodes_equal_dense_at_block_edges(backend, kv_heads, group):
    Case(EDGES, [1] * len(EDGES), kv_heads=kv_heads, group=group).assert_equal(backend)


@pytest.mark.parametrize("block_size", [1, 3, 16, 128])
def test_prefills_chunks_and_decodes_in_one_batch_equal_dense(backend, block_size):
    Case([1, 16, 33, 40, 129, 2], [1, 16, 17, 1, 2, 2], block_size=block_size).assert_equal(backend)


@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (2, 2), (1, 4)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 256])
def test_head_dims(backend, head_dim, kv_heads, group):
    Case([17, 48, 30], [1, 48, 7], head_dim=head_dim, kv_heads=kv_heads, group=group).assert_equal(backend)


@pytest.mark.parametrize("soft_cap", [None, 0.7])
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 33, 64, 65, 1000])
def test_windows_around_block_edges(backend, window, soft_cap):
    lens = [*EDGES, 40, 129, 40, 200]
    query_lens = [1] * len(EDGES) + [40, 20, 2, 3]
    Case(lens, query_lens, window=window, soft_cap=soft_cap).assert_equal(backend)


def test_one_plan_serves_layers_with_several_windows(backend):
    case = Case([100, 40, 70], [1, 7, 1])
    plan = plan_attention(case.tables, case.context_lens, case.starts, 16, backend=backend)
    for window in (None, 20, 5, 20, 1000, None):
        case.window = window
        out = plan.attend(case.query, case.cache, scale=case.scale, window=window)
        torch.testing.assert_close(out, case.dense(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_stays_within_twice_the_error_of_dense_in_that_dtype(backend, dtype, soft_cap):
    case = Case([33, 200, 64], [1, 1, 20], dtype=dtype, soft_cap=soft_cap)
    reference = case.dense()
    allowed = 2 * (case.dense(dtype).double() - reference).abs().max() + torch.finfo(dtype).eps
    assert (case.paged(backend).double() - reference).abs().max() <= allowed


@given(
    seqs=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=6),
    block_size=st.sampled_from([1, 2, 5, 8, 16, 32]),
    heads=st.sampled_from([(1, 1), (1, 8), (2, 2), (3, 1), (2, 5)]),
    window=st.none() | st.integers(1, 80),
    soft_cap=st.none() | st.floats(0.1, 10),
    seed=st.integers(0, 1000),
)
def test_any_batch_equals_dense(backend, seqs, block_size, heads, window, soft_cap, seed):
    lens = [max(a, b) for a, b in seqs]
    query_lens = [min(a, b) for a, b in seqs]
    Case(lens, query_lens, block_size=block_size, kv_heads=heads[0], group=heads[1], head_dim=16, window=window,
         soft_cap=soft_cap, seed=seed).assert_equal(backend)


def test_a_needle_in_the_last_slot_is_found(backend):
    case = Case([49], [1])
    case.query = case.keys[0][-1].repeat_interleave(2, dim=0)[None] * 20
    expected = case.values[0][-1].repeat_interleave(2, dim=0)
    torch.testing.assert_close(case.paged(backend)[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_write_kv_touches_the_named_slots_only(dtype):
    cache = KVCache(*(torch.full((4, 8, 2, 4), math.nan, dtype=dtype) for _ in range(2)))
    slots = torch.tensor([31, 0, 9])
    new = torch.randn(3, 2, 4)
    write_kv(new, -new, cache, slots)
    flat = cache.key.view(32, 2, 4)
    assert torch.equal(flat[slots], new.to(dtype))
    assert torch.equal(cache.value.view(32, 2, 4)[slots], -new.to(dtype))
    assert int(flat.isnan().any(-1).any(-1).sum()) == 29


def test_an_impossible_batch_is_refused(backend):
    case = Case([4, 4], [1, 1])
    with pytest.raises(ValueError, match="unknown attention backend 'cuda'"):
        plan_attention(case.tables, case.context_lens, case.starts, 16, backend="cuda")
    with pytest.raises(ValueError, match="do not agree"):
        plan_attention(case.tables, case.context_lens, case.starts[:-1], 16, backend=backend)
    with pytest.raises(ValueError, match="-1 query rows"):
        plan_attention(case.tables, case.context_lens, torch.tensor([0, 2, 1]), 16, backend=backend)
    with pytest.raises(ValueError, match="5 query rows for a context of 4"):
        plan_attention(case.tables, case.context_lens, torch.tensor([0, 5, 6]), 16, backend=backend)
    with pytest.raises(ValueError, match="for 32"):
        plan_attention(case.tables, torch.tensor([4, 33]), case.starts, 16, backend=backend)
    with pytest.raises(ValueError, match="a window of 0 positions"):
        paged_attention(case.query, case.cache, case.tables, case.context_lens, case.starts, 1.0, window=0,
                        backend=backend)


def test_after_inference_mode_it_still_works_outside(backend):
    """Scratch memory that is kept must not be tied to the mode in which it was made."""
    case = Case([40, 9], [1, 1], dtype=torch.float16, head_dim=24)
    with torch.inference_mode():
        inside = case.paged(backend)
    assert torch.equal(case.paged(backend), inside)
