"""The plainest case of each requirement again, as kernels take it that know 16 bits alone, or no blocks below 256."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from pabench.conformance.kernel import KernelUnderTest
from pabench.conformance.kernel.cases import AttendCase
from pabench.conformance.kernel.checks import (
    Check,
    equals_dense,
    every_row_written,
    lse_equals_dense,
    results_stay,
    same_alone,
    same_in_parts,
    same_whatever,
)
from pabench.conformance.kernel.strategies import plain_cases

_BLOCK_SIZES = (16, 256)
_AROUND_EDGES = (17, 255, 256, 257, 511, 513)
_EMPTY: dict[str, Any] = {"context_lens": (0, 257, 5), "query_lens": (1, 2, 0)}


def _cases(rows: str = "chunk", head_dim: int = 64, **fixed: Any) -> st.SearchStrategy[AttendCase]:
    """Batches in 16 bits throughout, of contexts around the edges of large blocks."""
    contexts = st.lists(st.sampled_from(_AROUND_EDGES), min_size=1, max_size=3).map(tuple)
    drawn = st.tuples(st.sampled_from(("float16", "bfloat16")), st.sampled_from(_BLOCK_SIZES), contexts)
    return drawn.flatmap(lambda each: plain_cases(
        rows=rows, form={"storage": each[0], "block_size": each[1], "head_dim": head_dim, "num_kv_heads": 1},
        **{"dtype": each[0], "context_lens": each[2]} | fixed))


_OPTIONS = [
    pytest.param(equals_dense, {}, marks=pytest.mark.requirement("kernel/block-boundary-lengths"), id="16-bits"),
    pytest.param(equals_dense, {"group": 8}, marks=pytest.mark.requirement("kernel/group-map"), id="16-bits-group"),
    pytest.param(equals_dense, {"head_dim": 128}, marks=pytest.mark.requirement("kernel/head-dims"), id="16-bits-dim"),
    pytest.param(equals_dense, {"window": 33, "tail": "minus-one"},
                 marks=pytest.mark.requirement("kernel/sliding-window"), id="16-bits-window"),
    pytest.param(equals_dense, {"soft_cap": 5.0}, marks=pytest.mark.requirement("kernel/soft-cap"), id="16-bits-cap"),
    pytest.param(equals_dense, {"alibi": True, "group": 4},
                 marks=pytest.mark.requirement("kernel/alibi"), id="16-bits-alibi"),
    pytest.param(equals_dense, _EMPTY, marks=pytest.mark.requirement("kernel/empty-sequence"), id="16-bits-empty"),
    pytest.param(every_row_written, _EMPTY,
                 marks=pytest.mark.requirement("kernel/every-row-written"), id="16-bits-rows"),
    pytest.param(lse_equals_dense, {"with_lse": True},
                 marks=pytest.mark.requirement("kernel/lse-correct"), id="16-bits-lse"),
    pytest.param(equals_dense, {"rows": "decode", "group": 8, "context_lens": (1025, 513)},
                 marks=pytest.mark.requirement("kernel/split-invariant"), id="16-bits-lengths"),
    pytest.param(same_in_parts, {"rows": "decode", "with_lse": True},
                 marks=pytest.mark.requirement("kernel/split-invariant"), id="16-bits-two-parts"),
    pytest.param(same_whatever(fill="zero"), {},
                 marks=pytest.mark.requirement("kernel/ignores-slots-past-seq-len"), id="16-bits-slots"),
    pytest.param(same_alone, {}, marks=pytest.mark.requirement("kernel/batch-invariant"), id="16-bits-batch"),
    pytest.param(results_stay, {}, marks=pytest.mark.requirement("kernel/results-stay"), id="16-bits-results"),
]


@pytest.mark.parametrize(("check", "options"), _OPTIONS)
def test_sixteen_bits(kernel: KernelUnderTest, check: Check, options: dict[str, Any]) -> None:
    """One option each, or none."""
    if check in (lse_equals_dense, same_in_parts):
        kernel.need("lse", "it is what is asked for")
    kernel.every(_cases(**options), check)
