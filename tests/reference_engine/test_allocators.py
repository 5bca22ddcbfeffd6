"""Allocators under random operations, against a model: block -> the tokens written in it."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_engine.memory.allocator import HOLE, IntegrityError, blocks_for
from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import extend_keys, root_key
from reference_engine.memory.swap import SwapSpace

BLOCK = 4
FINAL = 14  # tokens of a sequence in the end, at most

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


def paged(num_blocks=9):
    return PagedAllocator(num_blocks, BLOCK)


def caching(num_blocks=9):
    return PagedAllocator(num_blocks, BLOCK, prefix_caching=True)


def contiguous(num_blocks=9):
    return ContiguousAllocator(num_blocks, BLOCK, FINAL)


class World:
    """The pool as the allocator's user sees it: each slot holds a whole prefix, and each sequence reads back its own.

    Few streams of tokens, which differ from block to block, so that sequences often begin alike.
    """

    def __init__(self, allocator):
        self.allocator = allocator
        self.slots = {}      # (block, offset) -> the prefix up to and including that token
        self.tokens = {}     # sequence -> its tokens
        self.stream = {}
        self.final = {}
        self.published = {}  # sequence -> its published tokens: these are never cut off
        self.slid = {}       # sequence -> positions below are not read any more
        self.num_hits = 0
        self.next_id = 0

    def books(self):
        books = copy.deepcopy(vars(self.allocator))
        return books | ({"_cache": vars(books["_cache"])} if books.get("_cache") else {})

    def write(self, seq, count):
        start = len(self.tokens[seq])
        self.allocator.check_writable(seq, start, start + count)
        table = self.allocator.block_table(seq)
        for position in range(start, start + count):
            self.tokens[seq].append(self.token(seq, position))
            self.slots[table[position // BLOCK], position % BLOCK] = tuple(self.tokens[seq])

    def token(self, seq, position):
        return self.stream[seq] >> (position // BLOCK) & 1

    def keys(self, seq, count):
        keys = []
        extend_keys(keys, root_key(""), [self.token(seq, p) for p in range(count)], count, BLOCK)
        return keys

    def copy_blocks(self, copies):
        before = dict(self.slots)
        for source, target in copies:
            for offset in range(BLOCK):
                self.slots[target, offset] = before.get((source, offset))

    def check_contents(self, seq):
        table = self.allocator.block_table(seq)
        for p in range(self.slid[seq], len(self.tokens[seq])):
            assert self.slots[table[p // BLOCK], p % BLOCK] == tuple(self.tokens[seq][: p + 1])

    def pick(self, number):
        return sorted(self.tokens)[number % len(self.tokens)]

    def allocate(self, count, extra, stream):
        seq, self.next_id = self.next_id, self.next_id + 1
        final = min(count + extra, FINAL)
        self.stream[seq] = stream
        found = self.allocator.allocate(seq, count, final, self.keys(seq, count))
        if found is None:
            return False
        assert found < count
        self.num_hits += found
        self.final[seq], self.published[seq], self.slid[seq] = final, found, 0
        self.tokens[seq] = [self.token(seq, p) for p in range(found)]
        self.check_contents(seq)  # what was found is the very prefix
        self.write(seq, count - found)
        return True

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

    def truncate(self, number, count):
        seq = self.pick(number)
        count = max(count, self.published[seq], self.slid[seq])
        if 1 <= count <= len(self.tokens[seq]):
            self.allocator.truncate(seq, count)
            del self.tokens[seq][count:]

    def publish(self, number):
        seq = self.pick(number)
        full = len(self.tokens[seq]) // BLOCK
        self.allocator.publish(seq, self.keys(seq, full * BLOCK))
        self.published[seq] = full * BLOCK

    def slide(self, number, position):
        seq = self.pick(number)
        self.slid[seq] = max(self.slid[seq], min(position, len(self.tokens[seq])))
        self.allocator.slide(seq, self.slid[seq])

    def fork(self, number):
        parent, child = self.pick(number), self.next_id
        self.next_id += 1
        copies = self.allocator.fork(parent, child)
        if copies is None:
            return False
        self.copy_blocks(copies)
        self.tokens[child] = list(self.tokens[parent])
        for book in (self.stream, self.final, self.published, self.slid):
            book[child] = book[parent]
        return True

    def free(self, number):
        seq = self.pick(number)
        self.allocator.free(seq)
        del self.tokens[seq]

    def reset(self):
        self.allocator.reset_prefix_cache()

    def check(self):
        self.allocator.check_integrity()
        for seq in self.tokens:
            self.check_contents(seq)
        split = self.allocator.split({seq: len(tokens) for seq, tokens in self.tokens.items()})
        total = self.allocator.num_blocks * BLOCK
        assert split.token_states + split.reserved + split.internal_waste + split.free == total
        assert split.free == self.allocator.num_free_blocks * BLOCK
        assert 0 <= split.external_waste <= split.free
        assert min(split.token_states, split.reserved, split.internal_waste) >= 0


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


def test_a_freed_prefix_is_found_again_and_its_end_is_evicted_first():
    allocator = caching(4)
    keys = World(allocator)
    keys.allocate(12, 0, 0)
    keys.publish(0)
    blocks = list(allocator.block_table(0))
    keys.free(0)
    assert allocator.num_free_blocks == 4
    allocator.allocate(7, 8, 8)  # the free block, then the last of the idle ones
    assert blocks[2] in allocator.block_table(7)
    assert keys.allocate(13, 0, 0) is False
    allocator.free(7)
    assert keys.allocate(13, 0, 0)
    assert keys.num_hits == 8
    assert list(allocator.block_table(keys.pick(0)))[:2] == blocks[:2]


def test_a_full_hit_leaves_the_last_block_to_compute():
    world = World(caching())
    world.allocate(8, 0, 0)
    world.publish(0)
    world.allocate(8, 0, 0)
    assert world.num_hits == 4
    world.allocate(9, 0, 0)
    assert world.num_hits == 4 + 8


def test_two_blocks_of_one_prefix_are_each_findable():
    allocator = caching(6)
    world = World(allocator)
    for _ in range(2):  # both are computed before either is published
        world.allocate(8, 0, 0)
    for number in range(2):
        world.publish(number)
    first = list(allocator.block_table(0))
    world.free(0)
    allocator.allocate(100, 16, 16)  # takes the free blocks, then evicts both of the first
    assert set(first) <= set(allocator.block_table(100))
    allocator.free(100)
    world.free(0)
    assert world.allocate(9, 0, 0)
    assert world.num_hits == 8


def test_a_refused_hit_takes_no_reference():
    world = World(caching(4))
    world.allocate(8, 0, 0)
    world.publish(0)
    world.free(0)
    world.allocator.allocate(100, 8, 8)
    before = world.books()
    assert world.allocate(13, 0, 0) is False
    assert world.books() == before


def test_keys_cover_parent_and_extra_keys():
    plain, salted = [], []
    extend_keys(plain, root_key(""), [1] * 12, 12, BLOCK)
    extend_keys(salted, root_key("salt"), [1] * 12, 12, BLOCK)
    assert len({*plain, *salted}) == 6
    other: list = []
    extend_keys(other, root_key(""), [2] * 4 + [1] * 8, 12, BLOCK)
    assert not {*other} & {*plain}
    assert root_key("ab", "c") != root_key("a", "bc")
    more = list(plain[:1])
    extend_keys(more, root_key(""), [1] * 12, 12, BLOCK)
    assert more == plain


def test_a_window_gives_up_whole_blocks_behind_it_and_keeps_the_table_aligned():
    allocator = paged()
    allocator.allocate(0, 11, FINAL)
    last = allocator.block_table(0)[2]
    allocator.slide(0, 7)
    assert allocator.block_table(0)[0] == HOLE
    assert allocator.num_free_blocks == 7
    allocator.slide(0, 8)
    assert list(allocator.block_table(0)) == [HOLE, HOLE, last]
    with pytest.raises(IntegrityError, match="not its own"):
        allocator.check_writable(0, 4, 5)
    allocator.fork(0, 1)
    allocator.free(0)
    assert list(allocator.block_table(1)) == [HOLE, HOLE, last]
    allocator.check_integrity()


def test_truncate_frees_whole_blocks_only():
    allocator = paged()
    allocator.allocate(0, 11, FINAL)
    allocator.truncate(0, 5)
    assert allocator.num_free_blocks == 7
    assert allocator.append(0, 3) == []
    assert allocator.num_free_blocks == 7


def test_swap_loses_nothing_and_refusals_change_nothing():
    allocator = caching()
    swap = SwapSpace(3, allocator)
    allocator.allocate(0, 11, FINAL)
    table = list(allocator.block_table(0))
    out = swap.swap_out(0, 9)
    assert [source for source, _ in out] == table
    assert (allocator.num_free_blocks, swap.num_used_blocks) == (9, 3)
    allocator.allocate(1, 9, 9)
    assert swap.swap_out(1, 9) is None
    assert len(allocator.block_table(1)) == 3
    assert swap.swap_in(0, 12, 99, ()) == (0, [
        (host, device) for (_, host), device in zip(out, allocator.block_table(0), strict=True)
    ])
    swap.check_integrity()
    assert swap.num_used_blocks == 0
    swap._free.pop()
    with pytest.raises(IntegrityError, match="2 free"):
        swap.check_integrity()


def test_what_the_prefix_cache_still_has_is_not_copied_back():
    world = World(caching())
    swap = SwapSpace(9, world.allocator)
    world.allocate(11, 0, 0)
    world.publish(0)
    out = swap.swap_out(0, 11)
    cached, back = swap.swap_in(0, 12, FINAL, world.keys(0, 12))
    assert cached == 8
    assert back == [(out[2].target, world.allocator.block_table(0)[2])]
    world.allocator.check_integrity()


def test_contiguous_fork_copies_the_live_blocks_only():
    allocator = contiguous()
    allocator.allocate(0, 6, 10)
    copies = allocator.fork(0, 1)
    assert copies == list(zip(allocator.block_table(0), allocator.block_table(1), strict=True))[:2]
    assert allocator.fork(0, 2) is None
