"""Beyond the pool: sliding windows, host memory, indices of slots, what can never fit."""

from __future__ import annotations

import pytest

from pabench.conformance.alloc import AllocatorUnderTest, Play, Pool, Step
from pabench.conformance.alloc.checks import (
    check_contents,
    check_cover,
    check_distinct,
    check_hit,
    check_sum,
    check_unchanged,
)
from pabench.conformance.failure import fail

KINDS = pytest.mark.parametrize("caching", [False, True], ids=["plain", "cached"])


def keeps_its_window(play: Play) -> None:
    """The blocks that the window reaches are there and hold their own, found or not; those behind it are given back."""
    size = play.pool.block_size
    for step in play:
        for check in (check_hit, check_cover, check_contents, check_distinct, check_sum):
            check(play, step)
        for held in play.live:
            kept = [at for at in range(max(held.num_slid, 0) // size) if held.table[at] is not None]
            if kept:
                fail(f"{held.name} gives up the blocks wholly before position {held.num_slid}",
                     f"block {held.table[kept[0]]} at {kept[0]} of its table is still held")


@pytest.mark.requirement("alloc/window-keeps-its-blocks")
@KINDS
def test_window_keeps_its_blocks(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Windows that are shorter and longer than a block, at every offset to its edge; over blocks that are found too."""
    if caching:
        allocator.need("prefix_cache", "nothing is found")
    allocator.every_trace(keeps_its_window, window=True, caching=caching)


def comes_back(play: Play) -> None:
    """The same contents; of a manager that holds what is needed and no more, in as many blocks, here and there."""
    exact = "paged" in play.adapter.capabilities
    for step in play:
        for check in (check_hit, check_cover, check_contents, check_sum, check_unchanged):
            check(play, step)
        if exact and step.operation == "swap_in" and not step.refused:
            _check_taken(play, step)
        if exact and step.operation == "swap_out" and step.refused:
            _check_room(play, step)


def _check_taken(play: Play, step: Step) -> None:
    took, found = step.free_before - step.free_after, step.held.table[: step.num_cached // play.pool.block_size]
    needed = play.num_blocks(step.held) - sum(block in step.held_before for block in found)
    if took != needed:
        fail(f"{step.held.name} comes back into {needed} blocks", f"{took} were taken")


def _check_room(play: Play, step: Step) -> None:
    needed, room = play.num_blocks(step.held), play.num_free_host()
    if needed <= room:
        fail(f"{step.held.name} goes to host memory: it needs {needed} blocks, and {room} of "
             f"{play.pool.host_blocks} are free there", "it was refused",
             hint="who comes back from there, or is ended there, gives its host blocks back")


@pytest.mark.requirement("alloc/swap-in-restores")
@KINDS
def test_swap_in_restores(allocator: AllocatorUnderTest, caching: bool) -> None:
    """To host memory and back, while others take the blocks in between, or the prefix cache keeps some of them."""
    if caching:
        allocator.need("prefix_cache", "nothing is found")
    allocator.every_trace(comes_back, swap=True, caching=caching, about="swap_in")


@pytest.mark.requirement("alloc/oversized-said-beforehand")
def test_oversized_said_beforehand(allocator: AllocatorUnderTest) -> None:
    """What is said to fit into an idle pool does, token by token; what is said not to fit does not."""
    for block_size, num_blocks in ((1, 5), (2, 4), (4, 8)):
        pool = Pool(num_blocks, block_size, num_blocks * block_size // 2)
        allocator.claim(pool)
        for prompt in range(1, pool.max_tokens + 1):
            for final in range(prompt, pool.max_tokens + 1):
                for n in (1, 2, 3):
                    if n == 1 or allocator.can("fork"):
                        _check_admission(allocator, pool, prompt, final, n)
    oversized = Pool(4, 2, 64)
    allocator.claim(oversized)
    _check_admission(allocator, oversized, 9, 12, 1)


def _check_admission(allocator: AllocatorUnderTest, pool: Pool, prompt: int, final: int, n: int) -> None:
    play = allocator.play(pool)
    said = allocator.can_ever_hold(prompt, final, n)
    step = play.allocate(list(range(prompt)))
    fits = step is not None and not step.refused
    for _ in range(n - 1):
        fits = fits and not play.fork(play.live[0]).refused
    for number in range(final - prompt):
        for held in list(play.live):
            step = play.append(held, [number])
            fits = fits and step is not None and not step.refused
    if said != fits:
        fail(f"{n} sequences of {prompt} prompt tokens, {final} in the end, "
             f"{'fit into' if said else 'never fit into'} the idle pool, as it says",
             "they do" if fits else "one of them is refused",
             hint="a request that can never fit has to be known as such before it waits for room")


@pytest.mark.requirement("alloc/slot-index-wide")
def test_slot_index_wide(allocator: AllocatorUnderTest) -> None:
    """Blocks so large that the last slots lie beyond 32 bits; no memory is touched."""
    block_size, num_blocks = 2**26, 96
    pool = Pool(num_blocks, block_size, block_size)
    allocator.claim(pool)
    play = allocator.play(pool)
    for number in range(num_blocks):
        play.allocate([number])
    for held in play.live:
        slots = allocator.slots(held.seq, 0, 1)
        block = held.table[0]
        assert isinstance(block, int), "an implementation that counts slots counts blocks"
        allocator.case = f"{num_blocks} blocks of {block_size} slots; the first slot of block {block}"
        if slots != [block * block_size]:
            fail(f"slot {block * block_size}", f"slot {slots}", hint="block times block size needs 64 bits")
