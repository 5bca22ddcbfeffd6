"""What an allocator still finds of sequences that have ended, slid on, been cut off or swapped out."""

from __future__ import annotations

import pytest

from reference_engine.memory.allocator import HOLE, IntegrityError
from reference_engine.memory.prefix_cache import extend_keys, root_key
from reference_engine.memory.swap import SwapSpace
from tests.reference_engine.allocators import BLOCK, FINAL, World, caching, paged


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
