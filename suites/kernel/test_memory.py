"""Cache writes, block copies and merges: what they write, exactly that, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st

from pabench.conformance.kernel import KernelUnderTest
from pabench.conformance.kernel.cases import DTYPES, LAYOUTS, SCALED, SCALES, STORAGE, CacheForm, WriteCase
from pabench.conformance.kernel.memory_checks import (
    copied_exactly,
    merges_as_dense,
    nothing_else_written,
    written_exactly,
)
from pabench.conformance.kernel.strategies import (
    copy_cases,
    forms,
    many_copied,
    many_written,
    merge_cases,
    write_cases,
)

_FAR = pytest.mark.parametrize("far_elements", [2**31, 2**32], ids=["31-bits", "32-bits"])


@pytest.mark.requirement("kernel/cache-write-injective")
@pytest.mark.parametrize("storage", STORAGE)
def test_cache_write_injective(kernel: KernelUnderTest, storage: str) -> None:
    """Every element of every token comes back from its own place."""
    kernel.every(write_cases(form=forms(storage=storage, block_size=4)), written_exactly, share=len(STORAGE))


@pytest.mark.requirement("kernel/cache-write-injective", case="all-slots")
def test_all_slots(kernel: KernelUnderTest) -> None:
    """A whole cache in one call, in any order."""
    small = forms(block_size=8, num_kv_heads=3)
    kernel.every(write_cases(form=small, pads=False).flatmap(_all_slots), written_exactly)


def _all_slots(case: WriteCase) -> st.SearchStrategy[WriteCase]:
    slots = range(case.num_blocks * case.form.block_size)
    return st.permutations(slots).map(lambda order: replace(case, slots=tuple(order)))


@pytest.mark.requirement("kernel/cache-write-injective", case="many-tokens")
@pytest.mark.parametrize("num_tokens", [70, 300])
def test_many_tokens(kernel: KernelUnderTest, num_tokens: int) -> None:
    """More tokens than a tile has rows, as a prefill writes them."""
    kernel.every(many_written(num_tokens), written_exactly)


@pytest.mark.requirement("kernel/pad-writes-nothing")
def test_pad_writes_nothing(kernel: KernelUnderTest) -> None:
    """Tokens of slot -1 among others, or nothing but such."""
    kernel.every(write_cases() | write_cases(slots=(-1, -1, -1)), nothing_else_written)


@pytest.mark.requirement("kernel/strided-views", case="write")
def test_writes_into_views(kernel: KernelUnderTest) -> None:
    """Other strides; what lies between the rows stays as it is."""
    kernel.need("write", "views are written into")
    kernel.every(st.sampled_from(LAYOUTS[1:-1]).flatmap(
        lambda layout: write_cases(form=forms(layout=layout, block_size=4))), nothing_else_written)


@pytest.mark.requirement("kernel/quantisation-error-bounded")
@pytest.mark.parametrize("numbers", ["normal", "positive", "wide", "zeros"])
@pytest.mark.parametrize("storage", SCALED)
def test_quantisation_error_bounded(kernel: KernelUnderTest, storage: str, numbers: str) -> None:
    """Half a step of the range that is there: numbers around zero, far from it, of many sizes; odd head dims."""
    form = st.sampled_from((16, 80, 120)).flatmap(lambda dim: forms(storage=storage, block_size=4, head_dim=dim))
    kernel.every(write_cases(form=form, numbers=numbers), written_exactly)


@pytest.mark.requirement("kernel/block-copy-exact")
def test_block_copy_exact(kernel: KernelUnderTest) -> None:
    """Any bits, NaN too, in any strides; sources that are targets; into another cache."""
    kernel.every(copy_cases(), copied_exactly, share=1)


@pytest.mark.requirement("kernel/block-copy-exact", case="many-pairs")
@pytest.mark.parametrize("num_pairs", [9, 40])
def test_many_pairs(kernel: KernelUnderTest, num_pairs: int) -> None:
    """More pairs than one launch may be made for, as a swap has them."""
    kernel.every(many_copied(num_pairs), copied_exactly)


@pytest.mark.requirement("kernel/64-bit-addresses", case="write")
@_FAR
@pytest.mark.parametrize("storage", ["float32", "bfloat16", *SCALED])
def test_far_writes(kernel: KernelUnderTest, storage: str, far_elements: int) -> None:
    """Slots more than 2^31 or 2^32 elements from the cache's beginning; a scaled storage may have a path of its own."""
    kernel.need("write", "far slots are written")
    kernel.every(st.sampled_from(SCALES if storage in SCALED else ("",)).flatmap(lambda scales: write_cases(
        form=st.just(CacheForm(storage=storage, scales=scales, layout="far", far_elements=far_elements)))),
        written_exactly)


@pytest.mark.requirement("kernel/64-bit-addresses", case="copy")
@_FAR
@pytest.mark.parametrize("storage", DTYPES)
def test_far_copies(kernel: KernelUnderTest, storage: str, far_elements: int) -> None:
    """Blocks more than 2^31 or 2^32 elements from the cache's beginning.

    A copy may count in words of four bytes: then it is float32 that has as many of them as it has elements.
    """
    kernel.need("copy", "far blocks are copied")
    form = CacheForm(storage=storage, layout="far", far_elements=far_elements)
    kernel.every(copy_cases(form=st.just(form), target_blocks=None, num_blocks=6, pairs=((0, 5), (2, 1))),
                 copied_exactly)


@pytest.mark.requirement("kernel/merge-equals-dense")
def test_merge_equals_dense(kernel: KernelUnderTest) -> None:
    """Parts of close and of distant LSE, and parts that have seen nothing."""
    kernel.every(merge_cases(), merges_as_dense, share=1)
