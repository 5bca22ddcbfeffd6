"""Allocators under random operations, against a model, and what forks, refusals and integrity come to one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_engine.memory.allocator import IntegrityError, blocks_for
from reference_engine.memory.paged import PagedAllocator
from tests.reference_engine.allocators import BLOCK, FINAL, World, caching, contiguous, paged

_NUMBER = st.integers(0, 9)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, FINAL), st.integers(0, FINAL), st.integers(0, 7)),
        st.tuples(st.just("append"), _NUMBER, st.integers(1, 3)),
        st.tuples(st.just("truncate"), _NUMBER, st.integers(1, FINAL)),
        st.tuples(st.just("publish"), _NUMBER),
        st.tuples(st.just("slide"), _NUMBER, st.integers(0, FINAL)),
        st.tuples(st.just("fork"), _NUMBER),
        st.tuples(st.just("free"), _NUMBER),
        st.tuples(st.just("reset")),
    ),
    max_size=40,
)


@pytest.mark.parametrize("make", [paged, caching, contiguous])
@given(operations=OPERATIONS)
def test_every_sequence_reads_its_own_tokens_and_refusals_change_nothing(make, operations):
    world = World(make())
    for name, *arguments in operations:
        if name not in ("allocate", "reset") and not world.tokens:
            continue
        before = world.books()
        done = getattr(world, name)(*arguments)
        if done is False:
            assert world.books() == before
        world.check()
    for _ in list(world.tokens):
        world.free(0)
    world.check()
    assert world.allocator.num_free_blocks == world.allocator.num_blocks


@given(prompt=st.integers(1, 12), more=st.integers(0, 10), n=st.integers(1, 4), num_blocks=st.integers(1, 14))
def test_paged_prediction_equals_consumption(prompt, more, n, num_blocks):
    allocator = PagedAllocator(num_blocks, BLOCK)
    final = prompt + more
    fits = allocator.allocate(0, prompt, final) is not None
    for child in range(1, n) if fits else ():
        assert allocator.fork(0, child) == []
    for _ in range(more):
        fits = fits and all(allocator.append(seq) is not None for seq in range(n))
    # without a further token the fork's blocks stay shared, partial or not
    expected = num_blocks >= blocks_for(prompt, BLOCK) if not more else allocator.can_ever_hold(prompt, final, n)
    assert fits == expected


def test_fork_shares_all_and_copies_the_partial_block_at_the_first_write():
    allocator = paged()
    allocator.allocate(0, 6, FINAL)
    allocator.fork(0, 1)
    assert list(allocator.block_table(0)) == list(allocator.block_table(1))
    assert allocator.num_free_blocks == 7
    parent_last = allocator.block_table(0)[-1]
    (moved,) = allocator.append(1)
    assert moved == (parent_last, allocator.block_table(1)[-1])
    assert moved.source != moved.target
    assert allocator.append(0) == []  # alone on its block now
    assert allocator.block_table(0)[0] == allocator.block_table(1)[0]


def test_fork_at_a_block_edge_copies_nothing():
    allocator = paged()
    allocator.allocate(0, 8, FINAL)
    allocator.fork(0, 1)
    assert allocator.append(0) == []
    assert allocator.append(1) == []
    assert len({*allocator.block_table(0), *allocator.block_table(1)}) == 4


@pytest.mark.parametrize("make", [paged, contiguous])
def test_broken_promises_raise_and_change_nothing(make):
    world = World(make())
    world.allocate(5, 2, 0)
    before = world.books()
    with pytest.raises(ValueError, match="already has blocks"):
        world.allocator.allocate(0, 1, 1)
    with pytest.raises(ValueError, match="asks for 3 more"):
        world.allocator.append(0, 3)
    with pytest.raises(ValueError, match="asks for 9 tokens now and 4"):
        world.allocator.allocate(5, 9, 4)
    with pytest.raises(ValueError, match="cannot be cut to 6"):
        world.allocator.truncate(0, 6)
    with pytest.raises(KeyError):
        world.allocator.free(7)
    assert world.books() == before


def test_double_free_raises():
    allocator = paged()
    allocator.allocate(0, 5, 5)
    allocator.free(0)
    with pytest.raises(KeyError):
        allocator.free(0)


def test_integrity_names_a_leak_and_a_double_owner():
    allocator = paged()
    allocator.allocate(0, 5, 5)
    allocator._free.pop()
    with pytest.raises(IntegrityError, match=r"6 free .* \+ 0 idle \+ 2 owned != 9 blocks"):
        allocator.check_integrity()
    allocator = paged()
    allocator.allocate(0, 5, 5)
    allocator._free[0] = allocator.block_table(0)[0]
    with pytest.raises(IntegrityError, match="also owned"):
        allocator.check_integrity()
    allocator = paged()
    allocator.allocate(0, 5, 5)
    allocator._refs[allocator.block_table(0)[1]] = 2
    with pytest.raises(IntegrityError, match="references, holders"):
        allocator.check_integrity()


def test_a_shared_block_is_not_writable():
    allocator = paged()
    allocator.allocate(0, 6, FINAL)
    allocator.fork(0, 1)
    with pytest.raises(IntegrityError, match=r"not its own .*references.*, 2\)"):
        allocator.check_writable(0, 5, 6)


def test_split_of_paged_counts_shared_slots_once():
    allocator = paged()  # 9 blocks of 4 = 36 slots
    allocator.allocate(0, 6, 7)
    allocator.fork(0, 1)
    split = allocator.split({0: 5, 1: 6})
    assert split.token_states == 6
    assert split.reserved == 1         # the seventh token, in the block that both still hold
    assert split.internal_waste == 1   # the eighth slot
    assert split.external_waste == 0
    assert split.free == 28


def test_split_of_contiguous():
    allocator = contiguous()  # 9 blocks; a reservation takes 4
    allocator.allocate(0, 6, 10)
    split = allocator.split({0: 6})
    assert (split.token_states, split.reserved, split.internal_waste) == (6, 4, 6)
    assert split.free == 20
    assert split.external_waste == 4  # one block is left over of the free run of five


def test_contiguous_fork_copies_the_live_blocks_only():
    allocator = contiguous()
    allocator.allocate(0, 6, 10)
    copies = allocator.fork(0, 1)
    assert copies == list(zip(allocator.block_table(0), allocator.block_table(1), strict=True))[:2]
    assert allocator.fork(0, 2) is None
