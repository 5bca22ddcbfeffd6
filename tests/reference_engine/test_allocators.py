"""Allocators under random operations, against a model: block -> the tokens written in it."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_engine.memory.allocator import IntegrityError, blocks_for
from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator

BLOCK = 4
FINAL = 14  # tokens of a sequence in the end, at most

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(1, FINAL), st.integers(0, FINAL)),
        st.tuples(st.just("append"), st.integers(0, 9), st.integers(1, 3)),
        st.tuples(st.just("fork"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 9), st.just(0)),
    ),
    max_size=40,
)


def paged(num_blocks=9):
    return PagedAllocator(num_blocks, BLOCK)


def contiguous(num_blocks=9):
    return ContiguousAllocator(num_blocks, BLOCK, FINAL)


class World:
    """The pool as the allocator's user sees it: slots hold tokens, and each sequence must read back its own."""

    def __init__(self, allocator):
        self.allocator = allocator
        self.slots = {}     # (block, offset) -> token
        self.tokens = {}    # sequence -> its tokens
        self.final = {}
        self.next_id = 0
        self.next_token = 0

    def books(self):
        return copy.deepcopy(vars(self.allocator))

    def write(self, seq, count):
        start = len(self.tokens[seq])
        self.allocator.check_writable(seq, start, start + count)
        table = self.allocator.block_table(seq)
        for position in range(start, start + count):
            self.tokens[seq].append(self.next_token)
            self.slots[table[position // BLOCK], position % BLOCK] = self.next_token
            self.next_token += 1

    def copy_blocks(self, copies):
        before = dict(self.slots)
        for source, target in copies:
            for offset in range(BLOCK):
                self.slots[target, offset] = before.get((source, offset))

    def read(self, seq):
        table = self.allocator.block_table(seq)
        return [self.slots[table[p // BLOCK], p % BLOCK] for p in range(len(self.tokens[seq]))]

    def pick(self, number):
        return sorted(self.tokens)[number % len(self.tokens)]

    def allocate(self, count, extra):
        seq, self.next_id = self.next_id, self.next_id + 1
        final = min(count + extra, FINAL)
        if self.allocator.allocate(seq, count, final):
            self.tokens[seq], self.final[seq] = [], final
            self.write(seq, count)
            return True
        return False

    def append(self, number, count):
        seq = self.pick(number)
        if len(self.tokens[seq]) + count > self.final[seq]:
            return None
        copies = self.allocator.append(seq, count)
        if copies is None:
            return False
        self.copy_blocks(copies)
        self.write(seq, count)
        return True

    def fork(self, number, _):
        parent, child = self.pick(number), self.next_id
        self.next_id += 1
        copies = self.allocator.fork(parent, child)
        if copies is None:
            return False
        self.copy_blocks(copies)
        self.tokens[child], self.final[child] = list(self.tokens[parent]), self.final[parent]
        return True

    def free(self, number, _):
        seq = self.pick(number)
        self.allocator.free(seq)
        del self.tokens[seq], self.final[seq]
        return True

    def check(self):
        self.allocator.check_integrity()
        for seq, tokens in self.tokens.items():
            assert self.read(seq) == tokens
        split = self.allocator.split({seq: len(tokens) for seq, tokens in self.tokens.items()})
        total = self.allocator.num_blocks * BLOCK
        assert split.token_states + split.reserved + split.internal_waste + split.free == total
        assert split.free == self.allocator.num_free_blocks * BLOCK
        assert 0 <= split.external_waste <= split.free
        assert min(split.token_states, split.reserved, split.internal_waste) >= 0


@pytest.mark.parametrize("make", [paged, contiguous])
@given(operations=OPERATIONS)
def test_every_sequence_reads_its_own_tokens_and_refusals_change_nothing(make, operations):
    world = World(make())
    for name, a, b in operations:
        if name != "allocate" and not world.tokens:
            continue
        before = world.books()
        done = getattr(world, name)(a, b)
        if done is False:
            assert world.books() == before
        world.check()
    for seq in list(world.tokens):
        world.allocator.free(seq)
    world.tokens.clear()
    world.check()
    assert world.allocator.num_free_blocks == world.allocator.num_blocks


@given(prompt=st.integers(1, 12), more=st.integers(0, 10), n=st.integers(1, 4), num_blocks=st.integers(1, 14))
def test_paged_prediction_equals_consumption(prompt, more, n, num_blocks):
    allocator = PagedAllocator(num_blocks, BLOCK)
    final = prompt + more
    fits = allocator.allocate(0, prompt, final)
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
    world.allocate(5, 2)
    before = world.books()
    with pytest.raises(ValueError, match="already has blocks"):
        world.allocator.allocate(0, 1, 1)
    with pytest.raises(ValueError, match="asks for 3 more"):
        world.allocator.append(0, 3)
    with pytest.raises(ValueError, match="asks for 9 tokens now and 4"):
        world.allocator.allocate(5, 9, 4)
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
    with pytest.raises(IntegrityError, match=r"6 free .* \+ 2 owned != 9 blocks"):
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
    with pytest.raises(IntegrityError, match="shared"):
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


def test_contiguous_is_first_fit_and_refuses_without_a_long_enough_run():
    allocator = contiguous(12)
    assert [allocator.allocate(i, 1, 2) for i in range(4)] == [True, True, True, False]
    allocator.free(1)
    assert allocator.allocate(9, 1, 2)
    assert list(allocator.block_table(9)) == [4, 5, 6, 7]


def test_contiguous_fork_copies_the_live_blocks_only():
    allocator = contiguous()
    allocator.allocate(0, 6, 10)
    assert allocator.fork(0, 1) == [(0, 4), (1, 5)]
    assert allocator.fork(0, 2) is None
