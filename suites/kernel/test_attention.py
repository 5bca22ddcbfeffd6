"""Attention over blocks is dense attention, whatever the batch, the sizes and the options."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from pabench.conformance.kernel import KernelUnderTest
from pabench.conformance.kernel.cases import DTYPES, LAYOUTS, SCALED, STORAGE, AttendCase, CacheForm
from pabench.conformance.kernel.checks import equals_dense, every_row_written, lse_equals_dense, scales_count
from pabench.conformance.kernel.strategies import (
    BLOCK_SIZES,
    GROUPS,
    HEAD_DIMS,
    ROWS,
    attend_cases,
    crowd_cases,
    edges,
    forms,
    plain_cases,
)

# Option -> what it is of the cache, and of the batch.
_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "window": ({}, {"window": 9}), "soft-cap": ({}, {"soft_cap": 2.0}), "alibi": ({}, {"alibi": True}),
    "scales": ({"storage": "int8", "scales": "head"}, {}), "lse": ({}, {"with_lse": True}),
}


@pytest.mark.requirement("kernel/equals-dense")
@pytest.mark.parametrize("rows", ROWS)
def test_equals_dense(kernel: KernelUnderTest, rows: str) -> None:
    """Any batch, with any options together."""
    kernel.every(attend_cases(rows=rows), equals_dense, share=1 if rows in ("decode", "prefill") else 4)


@pytest.mark.requirement("kernel/equals-dense", case="many-sequences")
@pytest.mark.parametrize("num_seqs", [9, 40])
def test_many_sequences(kernel: KernelUnderTest, num_seqs: int) -> None:
    """More sequences than a warp's part of a tile has lanes, each with a table of its own."""
    kernel.every(crowd_cases(num_seqs), equals_dense)


@pytest.mark.requirement("kernel/lse-correct")
@pytest.mark.parametrize("rows", ROWS)
def test_lse_correct(kernel: KernelUnderTest, rows: str) -> None:
    """Any batch, with any options together."""
    kernel.every(attend_cases(rows=rows, dtype="float32", form=forms(storage="float32"), with_lse=True),
                 lse_equals_dense, share=4)


@pytest.mark.requirement("kernel/block-boundary-lengths")
@pytest.mark.parametrize("block_size", [1, 16, 24])
def test_block_boundary_lengths(kernel: KernelUnderTest, block_size: int) -> None:
    """Each length at, one before and one behind an edge, in batches of decodes."""
    lens = edges(block_size, 3 * block_size + 1)
    batches = [tuple(lens[i : i + 5]) for i in range(0, len(lens), 5)]
    kernel.every(st.sampled_from(batches).flatmap(lambda batch: plain_cases(
        rows="mixed", form={"block_size": block_size}, context_lens=batch)), equals_dense)


@pytest.mark.requirement("kernel/group-map")
@pytest.mark.parametrize("group", GROUPS)
def test_group_map(kernel: KernelUnderTest, group: int) -> None:
    """So many query heads read one KV head."""
    kv_heads = 1 if group > 16 else 2
    kernel.every(plain_cases(form={"num_kv_heads": kv_heads}, group=group, longest=40, max_seqs=2), equals_dense)


@pytest.mark.requirement("kernel/group-map", case="with")
@pytest.mark.parametrize("option", _OPTIONS)
def test_large_groups_with_options(kernel: KernelUnderTest, option: str) -> None:
    """Rows of a group that fill more than a tile of 16, and each option that knows its head or its row."""
    if option == "lse":
        kernel.need("lse", "it is what is asked for")
    cache, scoring = _OPTIONS[option]
    form = {"num_kv_heads": 2, "head_dim": 16, **cache}
    contexts = st.integers(12, 40)  # a decode and a chunk in each: they are two paths
    kernel.every(st.tuples(st.sampled_from((20, 8)), contexts, contexts).flatmap(lambda drawn: plain_cases(
        form=form, group=drawn[0], context_lens=drawn[1:], query_lens=(1, 5), **scoring)), equals_dense)


@pytest.mark.requirement("kernel/head-dims")
@pytest.mark.parametrize(("head_dim", "value_dim"), [*((d, d) for d in HEAD_DIMS), (192, 128), (64, 128), (72, 80)])
def test_head_dims(kernel: KernelUnderTest, head_dim: int, value_dim: int) -> None:
    """Powers of two and others; keys and values of different widths."""
    form = {"head_dim": head_dim, "value_dim": value_dim}
    kernel.every(plain_cases(form=form, longest=40, max_seqs=2), equals_dense)


@pytest.mark.requirement("kernel/block-sizes")
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_block_sizes(kernel: KernelUnderTest, block_size: int) -> None:
    """Smaller than a tile, larger, no divisor of one; with wide heads, which make tiles small."""
    form = st.sampled_from((64, 256)).flatmap(lambda dim: forms(
        block_size=block_size, head_dim=dim, num_kv_heads=1, storage="float32", layout="plain"))
    kernel.every(attend_cases(form=form, window=None, soft_cap=None, alibi=False, scale=None, max_seqs=2, fill="nan",
                              tail="poison", arguments="int32"), equals_dense)


@pytest.mark.requirement("kernel/storage-dtypes")
@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_storage_dtypes(kernel: KernelUnderTest, storage: str, dtype: str) -> None:
    """Keys and values in one dtype, queries in another."""
    kernel.every(plain_cases(form={"storage": storage, "head_dim": 32}, dtype=dtype), equals_dense)


@pytest.mark.requirement("kernel/sliding-window")
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 33, 64])
def test_sliding_window(kernel: KernelUnderTest, window: int) -> None:
    """Contexts of W-1, W and W+1 positions, and longer ones, whose first entries name nothing."""
    lens = sorted({max(1, window - 1), window, window + 1, window + 16, 2 * window + 3})
    kernel.every(st.lists(st.sampled_from(lens), min_size=1, max_size=4).map(tuple).flatmap(
        lambda batch: plain_cases(window=window, context_lens=batch, tail="minus-one")), equals_dense)


@pytest.mark.requirement("kernel/soft-cap")
@pytest.mark.parametrize("soft_cap", [0.5, 5.0, 50.0])
def test_soft_cap(kernel: KernelUnderTest, soft_cap: float) -> None:
    """Lengths through all of a tile: what lies behind the end has to have no weight after the cap either."""
    kernel.every(st.lists(st.integers(1, 66), min_size=2, max_size=4).map(tuple).flatmap(
        lambda batch: plain_cases(soft_cap=soft_cap, context_lens=batch)), equals_dense)


@pytest.mark.requirement("kernel/alibi")
def test_alibi(kernel: KernelUnderTest) -> None:
    """Heads far apart in slope."""
    kernel.every(plain_cases(alibi=True, group=4), equals_dense)


@pytest.mark.requirement("kernel/alibi", case="lse")
def test_alibi_in_the_lse(kernel: KernelUnderTest) -> None:
    """A constant offset changes no weight: only the LSE shows it."""
    kernel.need("lse", "a constant offset is seen in the LSE alone")
    kernel.every(plain_cases(alibi=True, group=4, form={"storage": "float32"}, dtype="float32", with_lse=True),
                 lse_equals_dense)


@pytest.mark.requirement("kernel/kv-scale")
@pytest.mark.parametrize("scales", ["tensor", "head", "slot"])
@pytest.mark.parametrize("storage", SCALED)
def test_kv_scale(kernel: KernelUnderTest, storage: str, scales: str) -> None:
    """Scales that differ from head to head and slot to slot, and the doubles of all."""
    form = {"storage": storage, "scales": scales}
    kernel.every(st.sampled_from(("decode", "chunk")).flatmap(lambda rows: plain_cases(
        rows=rows, form=form, dtype="float32", longest=70)), scales_count)


@pytest.mark.requirement("kernel/strided-views")
@pytest.mark.parametrize("layout", LAYOUTS[:-1])
def test_strided_views(kernel: KernelUnderTest, layout: str) -> None:
    """The same cache in other strides."""
    kernel.every(attend_cases(form=forms(layout=layout), window=None, soft_cap=None, alibi=False), equals_dense)


@pytest.mark.requirement("kernel/64-bit-addresses")
@pytest.mark.parametrize("storage", STORAGE)
def test_far_blocks(kernel: KernelUnderTest, storage: str) -> None:
    """The live blocks lie more than 2^31 elements behind the cache's beginning."""
    kernel.every(_far_cases(storage, 2**31), equals_dense)


@pytest.mark.requirement("kernel/64-bit-addresses", case="past-32-bits")
@pytest.mark.parametrize("storage", STORAGE)
def test_farther_blocks(kernel: KernelUnderTest, storage: str) -> None:
    """The live blocks lie more than 2^32 elements behind the cache's beginning: 32 bits without a sign wrap around."""
    kernel.every(_far_cases(storage, 2**32), equals_dense)


def _far_cases(storage: str, far_elements: int) -> st.SearchStrategy[AttendCase]:
    scales = "tensor" if storage in SCALED else ""
    form = CacheForm(storage=storage, layout="far", far_elements=far_elements, scales=scales)
    return attend_cases(form=st.just(form), dtype="float32" if storage in SCALED else storage, window=None,
                        soft_cap=None, alibi=False, longest=40, max_seqs=2)


@pytest.mark.requirement("kernel/shared-prefix")
@pytest.mark.parametrize("rows", ["decode", "mixed"])
def test_shared_prefix(kernel: KernelUnderTest, rows: str) -> None:
    """Blocks that all sequences begin with, read once for all or not."""
    kernel.every(st.sampled_from((16, 32, 128)).flatmap(lambda prefix: attend_cases(
        rows=rows, shared_prefix_len=prefix, form=forms(block_size=16), longest=40)), equals_dense)


@pytest.mark.requirement("kernel/empty-sequence")
def test_empty_sequence(kernel: KernelUnderTest) -> None:
    """Sequences without positions, or without rows, among others."""
    kernel.every(_with_empty(), equals_dense)


@pytest.mark.requirement("kernel/every-row-written")
def test_every_row_written(kernel: KernelUnderTest) -> None:
    """No row is left as memory was."""
    kernel.every(_with_empty(), every_row_written)


@st.composite
def _with_empty(draw: st.DrawFn):
    kinds = ((0, 1), (0, 3), (0, 0), (5, 0), (17, 1), (33, 4), (1, 1))
    some = st.lists(st.sampled_from(kinds), min_size=1, max_size=5)
    seqs = draw(some.filter(lambda seqs: any(rows for _, rows in seqs)))
    return draw(plain_cases(context_lens=tuple(n for n, _ in seqs), query_lens=tuple(m for _, m in seqs)))
