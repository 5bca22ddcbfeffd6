"""The buddy allocator under random operations, against a model: the set of taken blocks."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_engine.memory.allocator import IntegrityError
from reference_engine.memory.buddy import BuddySpace, chunk_blocks

SPACES = st.integers(1, 40)
# A number of blocks to take; or None and which chunk to give back.
OPERATIONS = st.lists(st.one_of(st.tuples(st.integers(1, 40), st.just(0)),
                                st.tuples(st.none(), st.integers(0, 40))), max_size=40)


def free_windows(num_blocks, taken, size):
    """First blocks of the aligned windows of `size` blocks that are all free."""
    return [first for first in range(0, num_blocks - size + 1, size)
            if not taken.intersection(range(first, first + size))]


def maximal_windows(num_blocks, taken):
    """First block -> blocks: aligned free windows that lie in no larger one."""
    found = {}
    for size in (2**k for k in reversed(range(num_blocks.bit_length()))):
        for first in free_windows(num_blocks, taken, size):
            if not any(start <= first < start + length for start, length in found.items()):
                found[first] = size
    return found


@given(num_blocks=SPACES, operations=OPERATIONS)
def test_chunks_are_aligned_disjoint_and_joined_as_far_as_can_be(num_blocks, operations):
    space, model = BuddySpace(num_blocks), {}
    for wanted, which in operations:
        taken = {block for first, size in model.items() for block in range(first, first + size)}
        if wanted is not None:
            before = copy.deepcopy(space)
            first, size = space.take(wanted), chunk_blocks(wanted)
            assert (first is not None) == bool(free_windows(num_blocks, taken, size))
            if first is None:
                assert space == before
            else:
                assert first in free_windows(num_blocks, taken, size)
                model[first] = size
        elif model:
            first = sorted(model)[which % len(model)]
            space.give_back(first)
            del model[first]
        space.check_integrity()
        taken = {block for first, size in model.items() for block in range(first, first + size)}
        assert space.taken == model
        assert space.num_free_blocks == num_blocks - len(taken)
        assert space.free_chunks() == maximal_windows(num_blocks, taken)
        for size in (1, 2, 3, 8, 40):
            assert space.num_fitting(size) == len(free_windows(num_blocks, taken, chunk_blocks(size)))
    for first in model:
        space.give_back(first)
    assert space == BuddySpace(num_blocks)


@given(num_blocks=SPACES, wanted=st.integers(1, 40))
def test_as_many_fit_as_can_be_taken(num_blocks, wanted):
    space = BuddySpace(num_blocks)
    fitting = space.num_fitting(wanted)
    assert all(space.take(wanted) is not None for _ in range(fitting))
    assert space.take(wanted) is None


@given(wanted=st.integers(1, 10_000))
def test_a_chunk_is_the_next_power_of_two(wanted):
    size = chunk_blocks(wanted)
    assert size.bit_count() == 1
    assert size // 2 < wanted <= size


def test_a_space_starts_as_its_binary_parts():
    parts = BuddySpace(15_728).free_chunks()
    assert list(parts.values()) == [16, 32, 64, 256, 1024, 2048, 4096, 8192]
    assert parts[0] == 8192


def test_the_smallest_chunk_that_fits_is_cut():
    space = BuddySpace(24)  # 16 + 8
    assert space.take(3) == 16
    assert space.free_chunks() == {0: 16, 20: 4}
    space.give_back(16)
    assert space.free_chunks() == {0: 16, 16: 8}


def test_what_is_not_taken_cannot_be_given_back():
    space = BuddySpace(8)
    space.take(4)
    before = copy.deepcopy(space)
    for first in (1, 4, 9):
        with pytest.raises(KeyError):
            space.give_back(first)
    assert space == before


def broken(change):
    space = BuddySpace(11)  # 8 + 2 + 1
    space.take(2)           # chunk 8
    space.take(4)           # chunk 0
    change(space)
    return space


@pytest.mark.parametrize(("change", "text"), [
    (lambda space: space._free[2].clear(),
     r"free 1 x 1 = 1 \(booked: 5\) \+ taken 1 x 4 \+ 1 x 2 = 6 != 11 blocks"),
    (lambda space: setattr(space, "num_free_blocks", 6), r"= 5 \(booked: 6\)"),
    (lambda space: space.taken.update({8: 4}), r"!= 11 blocks"),
    (lambda space: space._free.__setitem__(2, {2: None}), r"4 blocks starts at 2, the one before ends at 4"),
    (lambda space: (space._free[2].clear(), space._free[1].update({4: None, 6: None})),
     r"not joined, \(first block, blocks\): \[\(4, 2\), \(6, 2\)\]"),
])
def test_integrity_names_what_does_not_add_up(change, text):
    broken(lambda _: None).check_integrity()
    with pytest.raises(IntegrityError, match=text):
        broken(change).check_integrity()
