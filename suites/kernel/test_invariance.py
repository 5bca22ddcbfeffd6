"""What may not matter does not: what dead memory holds, where blocks lie, how work is split, what else is computed."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from pabench.conformance.kernel import KernelUnderTest
from pabench.conformance.kernel.cases import CacheForm
from pabench.conformance.kernel.checks import (
    bad_table_refused,
    equals_dense,
    equals_dense_wherever,
    results_stay,
    same_alone,
    same_in_parts,
    same_whatever,
)
from pabench.conformance.kernel.strategies import attend_cases, forms, long_cases, plain_cases, very_long_cases


@pytest.mark.requirement("kernel/ignores-slots-past-seq-len")
@pytest.mark.parametrize("rows", ["decode", "mixed"])
def test_ignores_slots_past_seq_len(kernel: KernelUnderTest, rows: str) -> None:
    """Dead slots of live blocks, and whole dead blocks, hold NaN or such; bit for bit as with zeros."""
    kernel.every(attend_cases(rows=rows), same_whatever(fill="zero"), share=1 if rows == "decode" else 4)


@pytest.mark.requirement("kernel/ignores-unused-table-entries")
@pytest.mark.parametrize("rows", ["decode", "mixed"])
def test_ignores_unused_table_entries(kernel: KernelUnderTest, rows: str) -> None:
    """Entries past the end, and behind the window, name a poisoned block, or none; bit for bit as with a clean one."""
    kernel.every(attend_cases(rows=rows), same_whatever(tail="poison", fill="zero"), share=1 if rows == "decode" else 4)


@pytest.mark.requirement("kernel/block-permutation-invariant")
def test_block_permutation_invariant(kernel: KernelUnderTest) -> None:
    """The same blocks in other places, and in caches of other sizes."""
    kernel.every(attend_cases(), equals_dense_wherever)


@pytest.mark.requirement("kernel/argument-forms")
@pytest.mark.parametrize("arguments", ["int64", "views"])
def test_argument_forms(kernel: KernelUnderTest, arguments: str) -> None:
    """Tables and lengths of either width, or as views of others; one length for all as a single number, spread."""
    same = st.integers(1, 70).flatmap(lambda n: attend_cases(arguments="int32", context_lens=(n,) * 3))
    kernel.every(attend_cases(arguments="int32") | same, same_whatever(arguments=arguments))


@pytest.mark.requirement("kernel/split-invariant", case="lengths")
def test_split_lengths(kernel: KernelUnderTest) -> None:
    """Long contexts of lengths around the edges of splits, with a needle in each."""
    ends = st.sampled_from((127, 129, 255, 257, 511, 513, 767, 1023, 1025))
    form = CacheForm(head_dim=32, value_dim=32)
    kernel.every(st.tuples(ends, ends).flatmap(lambda lens: attend_cases(
        rows="decode", context_lens=lens, form=st.just(form), group=8, window=None, soft_cap=None, alibi=False,
        dtype="float32")), equals_dense)


@pytest.mark.requirement("kernel/split-invariant", case="options")
def test_split_with_options(kernel: KernelUnderTest) -> None:
    """Long contexts of any storage with windows, caps, ALiBi and drafts: each crosses edges between parts."""
    kernel.every(long_cases(), equals_dense, share=20)


@pytest.mark.requirement("kernel/split-invariant", case="very-long")
@pytest.mark.parametrize("rows", ["decode", "chunk"])
def test_very_long(kernel: KernelUnderTest, rows: str) -> None:
    """More parts than fit into a fixed number of them."""
    kernel.every(very_long_cases(rows), equals_dense)


@pytest.mark.requirement("kernel/split-invariant", case="two-parts")
def test_two_parts(kernel: KernelUnderTest) -> None:
    """A context cut at the end of any block, attended in two calls, merged by LSE."""
    kernel.need("lse", "two parts are merged by it")
    kernel.every(st.integers(17, 60).flatmap(lambda context: plain_cases(
        rows="decode", form={"block_size": 16}, context_lens=(context,), max_seqs=1)), same_in_parts)


@pytest.mark.requirement("kernel/batch-invariant")
def test_batch_invariant(kernel: KernelUnderTest) -> None:
    """Each sequence alone, and in a batch."""
    kernel.every(attend_cases(max_seqs=4), same_alone)


@pytest.mark.requirement("kernel/results-stay")
def test_results_stay(kernel: KernelUnderTest) -> None:
    """Results of one call while others run."""
    long = attend_cases(rows="decode", context_lens=(520, 30), form=forms(head_dim=32, num_kv_heads=1), max_seqs=2)
    kernel.every(plain_cases(max_seqs=2) | long, results_stay)


@pytest.mark.requirement("kernel/bad-table-refused")
def test_bad_table_refused(kernel: KernelUnderTest) -> None:
    """A live entry that is -1, or one past the last block."""
    kernel.every(plain_cases(rows="decode", max_seqs=2), bad_table_refused)
