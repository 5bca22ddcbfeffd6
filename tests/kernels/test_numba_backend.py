"""What the compiled backend adds: its threads, its division of labour with torch, and its refusals."""

from __future__ import annotations

import pytest
import torch
from paged_kernels import numba_backend, plan_attention
from paged_kernels.numba_backend import MAX_ROWS

from tests.kernels.test_paged_attention import Case


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("lens", [[1], [300], [5, 900, 17, 40, 2, 200]])
def test_threads_change_no_bit(monkeypatch, lens, threads):
    case = Case(lens, [1] * len(lens), kv_heads=4, dtype=torch.float32)
    alone = case.paged("numba")
    monkeypatch.setattr(numba_backend, "_SMALLEST_SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(case.paged("numba"), alone)


def test_a_plan_tells_what_runs_where():
    case = Case([40, 50, 60, 9], [1, MAX_ROWS, MAX_ROWS + 1, 9])
    plan = plan_attention(case.tables, case.context_lens, case.starts, 16, backend="numba")
    assert plan.describe() == "2 sequences in numba, 2 prefills in torch"


@pytest.mark.parametrize("entry", [-1, 10_000])
def test_a_live_entry_that_names_no_block_is_refused(entry):
    case = Case([40, 50], [1, 1])
    case.tables[1, 2] = entry
    with pytest.raises(ValueError, match="block table of sequence 1 has a live entry"):
        case.paged("numba")


def test_infinite_and_missing_values_come_out_as_in_torch():
    case = Case([20, 20, 20], [1, 1, 1], dtype=torch.float32)
    flat = case.cache.value.view(-1, 2, 32)
    for seq, bad in enumerate((torch.inf, torch.nan, 1.0)):
        flat[int(case.tables[seq, 0]) * 16 + 3, 0, 5] = bad
    ours, theirs = case.paged("numba"), case.paged("torch")
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert ours.isnan().sum() == 2
    assert ours.isinf().sum() == 2


def test_float32_weights_are_as_exact_as_torch_makes_them():
    case = Case([700, 300], [1, 1], head_dim=64, dtype=torch.float32)
    case.query *= 8
    reference = case.dense()
    allowed = 2 * (case.paged("torch").double() - reference).abs().max() + torch.finfo(torch.float32).eps
    assert (case.paged("numba").double() - reference).abs().max() <= allowed
