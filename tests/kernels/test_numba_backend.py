"""What the compiled backend adds: its threads, its division of labour with torch, and its refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from paged_kernels import KVCache, numba_backend, paged_attention, plan_attention
from paged_kernels.numba_backend import MAX_ROWS

from pabench.conformance.kernel.adapter import Batch
from pabench.conformance.kernel.cases import AttendCase, CacheForm
from pabench.conformance.kernel.drawing import draw_attend
from pabench.conformance.kernel.tolerance import expect


def decodes(*lens: int, kv_heads: int = 2) -> AttendCase:
    return AttendCase(lens, (1,) * len(lens), CacheForm(num_kv_heads=kv_heads, head_dim=32, value_dim=32), group=2)


def attend(batch: Batch, backend: str = "numba") -> torch.Tensor:
    return paged_attention(batch.query, KVCache(*batch.cache), batch.block_tables, batch.context_lens,
                           batch.query_start_loc, batch.scale, backend=backend)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("lens", [[1], [300], [5, 900, 17, 40, 2, 200]])
def test_threads_change_no_bit(monkeypatch, lens, threads):
    batch = draw_attend(decodes(*lens, kv_heads=4)).batch
    alone = attend(batch)
    monkeypatch.setattr(numba_backend, "_SMALLEST_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(attend(batch), alone)


def test_a_plan_tells_what_runs_where():
    batch = draw_attend(AttendCase((40, 50, 60, 9), (1, MAX_ROWS, MAX_ROWS + 1, 9))).batch
    plan = plan_attention(batch.block_tables, batch.context_lens, batch.query_start_loc, 16, backend="numba")
    assert plan.describe() == "2 sequences in numba, 2 prefills in torch"


@pytest.mark.parametrize("entry", [-1, 10_000])
def test_a_live_entry_that_names_no_block_is_refused(entry):
    batch = draw_attend(decodes(40, 50)).batch
    batch.block_tables[1, 2] = entry
    with pytest.raises(ValueError, match="block table of sequence 1 has a live entry"):
        attend(batch)


def test_a_table_that_no_row_asks_for_is_not_looked_at():
    """Rows of the first sequence and of the last; between them nothing of a table is live, whatever it holds."""
    batch = draw_attend(AttendCase((5, 30, 5), (1, 0, 1))).batch
    batch.block_tables[1] = torch.tensor([-1, 99] * batch.block_tables.shape[1])[: batch.block_tables.shape[1]]
    torch.testing.assert_close(attend(batch), attend(batch, "torch"), rtol=1e-5, atol=1e-5)
    plan = plan_attention(batch.block_tables, batch.context_lens, batch.query_start_loc, 16, backend="numba")
    assert plan.describe() == "2 sequences in numba, 0 prefills in torch"
    none = replace(batch, query=batch.query[:0], query_start_loc=torch.zeros(4, dtype=torch.int64))
    assert attend(none).shape == none.query.shape


def test_infinite_and_missing_values_come_out_as_in_torch():
    batch = draw_attend(decodes(20, 20, 20)).batch
    flat = batch.cache.value.view(-1, 2, 32)
    for seq, bad in enumerate((torch.inf, torch.nan, 1.0)):
        flat[int(batch.block_tables[seq, 0]) * 16 + 3, 0, 5] = bad
    ours, theirs = attend(batch), attend(batch, "torch")
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert ours.isnan().sum() == 2
    assert ours.isinf().sum() == 2


def test_float32_weights_are_as_exact_as_torch_makes_them():
    drawn = draw_attend(decodes(700, 300))
    batch = replace(drawn.batch, query=drawn.batch.query * 8)
    content = replace(drawn.content, queries=[query * 8 for query in drawn.content.queries])
    exact = expect(content, torch.float32).exact.out
    allowed = 2 * (attend(batch, "torch").double() - exact).abs().max() + torch.finfo(torch.float32).eps
    assert (attend(batch).double() - exact).abs().max() <= allowed


@pytest.mark.parametrize(("score", "counts"), [(-60.0, True), (-80.0, False)])
def test_weights_below_what_float32_keeps_count_as_none(score, counts):
    """e^-60 of a value of 1e30 shows; smaller weights' products with ordinary values would be subnormal, and slow."""
    batch = draw_attend(decodes(20, kv_heads=1)).batch
    batch.query.zero_()[..., 0] = 1 / batch.scale
    key, value = (x.view(-1, 1, 32) for x in (batch.cache.key, batch.cache.value))
    key[..., 0], value[...] = score, 1e30
    last = int(batch.block_tables[0, 1]) * 16 + 3
    key[last, 0, 0], value[last] = 0.0, 1.0
    expected = 1 + 19 * math.exp(score) * 1e30 if counts else 1.0
    torch.testing.assert_close(attend(batch), torch.full_like(batch.query, expected), rtol=1e-4, atol=0)
