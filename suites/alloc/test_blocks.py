"""Which block belongs to whom: sums, holders, sharing, copies."""

from __future__ import annotations

import pytest

from pabench.conformance.alloc import AllocatorUnderTest, Play, Step
from pabench.conformance.alloc.checks import (
    check_contents,
    check_cover,
    check_distinct,
    check_single_writer,
    check_sum,
    check_unchanged,
    text,
)
from pabench.conformance.failure import fail

KINDS = pytest.mark.parametrize("caching", [False, True], ids=["plain", "cached"])


def room(play: Play) -> int:
    """How many sequences of one token an idle pool holds. All are given back."""
    count, log = 0, list(play.log)
    while count <= play.pool.num_blocks:
        step = play.allocate([100 + count])
        if step is None or step.refused:
            break
        count += 1
    while play.live:
        play.free(play.live[-1])
    play.log[:] = log
    return count


def room_when_new(play: Play) -> int:
    """The same of a pool that nothing has happened to."""
    (empty := Play(play.adapter, play.pool, [])).begin()
    return room(empty)


def conserves(play: Play) -> None:
    """The sum after each operation; at the end, as much room as in a new pool."""
    new = room_when_new(play)
    for step in play:
        check_sum(play, step)
    while play.live:
        check_sum(play, play.free(play.live[0]))
    left = room(play)
    if left != new:
        fail(f"the pool, given back whole, holds {new} sequences of one token, as it did when new", f"it holds {left}",
             hint="blocks were lost on the way" if left < new else "the free list holds blocks twice")


@pytest.mark.requirement("alloc/conservation")
@KINDS
def test_conservation(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Blocks are neither lost nor made."""
    allocator.every_trace(conserves, caching=caching)


def refuses_without_a_trace(play: Play) -> None:
    """Nothing that can be seen changes; nor is anything kept back that shows when all is given back."""
    refused = 0
    for step in play:
        refused += step.refused
        check_unchanged(play, step)
    while refused and play.live:
        play.free(play.live[0])
    if refused and (free := play.num_free()) != play.pool.num_blocks:
        fail(f"after {refused} refusals and with all given back, {play.pool.num_blocks} blocks are free",
             f"{free} are", hint="a refusal has kept references: check for room first, then take")


@pytest.mark.requirement("alloc/failure-is-no-op")
@KINDS
def test_failure_is_no_op(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Refusals, of all operations that may be refused."""
    allocator.every_trace(refuses_without_a_trace, caching=caching)


def size_cost(play: Play, step: Step) -> int:
    """Blocks that the lengths say an operation takes, of a manager that holds what is needed and no more."""
    held, size = step.held, play.pool.block_size
    blocks = -(-held.num_tokens // size)
    if step.operation == "allocate":
        return blocks - sum(block in step.held_before for block in held.table[: step.num_cached // size])
    if step.operation == "fork":
        return len(held.table) - sum(block in step.held_before for block in held.table)
    if step.operation != "append":
        return step.free_before - step.free_after
    grown = [block for block in held.table[len(step.before) :] if block is not None]
    return len(grown) + len(step.copies)


def takes_what_it_says(play: Play) -> None:
    """Blocks taken are those foretold, and those that the lengths say; what fits is not refused."""
    size, exact = play.pool.block_size, "paged" in play.adapter.capabilities
    for step in play:
        took = step.free_before - step.free_after
        if step.foretold and (step.cost is None) != step.refused:
            fits = "it does not fit" if step.cost is None else f"it fits, into {step.cost} blocks"
            fail(f"{step.operation} of {step.held.name}: {fits}, as was foretold",
                 "it was refused" if step.refused else f"it took {took} blocks")
        if step.refused:
            if exact:
                _check_refusal(play, step)
            continue
        said = [(step.cost or 0, ", as was foretold")] if step.foretold else []
        said += [(size_cost(play, step), "")] if exact else []
        for expected, why in said:
            if took != expected:
                fail(f"{step.operation} of {step.held.name} ({step.held.num_tokens} tokens in blocks of {size}) takes "
                     f"{expected} blocks{why}: free {step.free_before} - {expected} = {step.free_before - expected}",
                     f"free {step.free_after}")


def _check_refusal(play: Play, step: Step) -> None:
    """Refused, though even without anything shared there was room."""
    size, held = play.pool.block_size, step.held
    if step.operation == "allocate":
        needed = -(-held.num_tokens // size)
    elif step.operation == "append":
        shared = [held] != [each for each in play.live if held.table and held.table[-1] in each.table]
        tokens = held.num_tokens + step.num_asked
        needed = -(-tokens // size) - -(-held.num_tokens // size) + (shared and held.num_tokens % size > 0)
    else:
        return
    if needed <= step.free_before:
        fail(f"{step.operation} of {held.name} is served: it needs {needed} blocks, {step.free_before} are free",
             "it was refused")


@pytest.mark.requirement("alloc/prediction-equals-consumption")
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "cached"])
def test_prediction_equals_consumption(allocator: AllocatorUnderTest, caching: bool) -> None:
    """By the manager's own predictions where it makes some, and by the lengths where they tell."""
    forms = [form for form, capability in (("its own predictions", "cost"), ("the lengths", "paged"))
             if allocator.can(capability)]
    if not forms:
        allocator.need("paged", "it foretells nothing, and what it takes cannot be told from the lengths")
    allocator.every_trace(takes_what_it_says, caching=caching)
    allocator.note += f", held against {' and '.join(forms)}"


def wastes_no_block(play: Play) -> None:
    """As many blocks as the tokens fill, the last one perhaps in part."""
    for _ in play:
        for held in play.live:
            needed = -(-held.num_tokens // play.pool.block_size)
            if len(held.table) != needed:
                fail(f"{held.name} holds {needed} blocks of {play.pool.block_size} for its {held.num_tokens} tokens",
                     f"it holds {len(held.table)}: {text(held.table)}")


@pytest.mark.requirement("alloc/tail-waste-below-one-block")
def test_tail_waste_below_one_block(allocator: AllocatorUnderTest) -> None:
    """No block without a token."""
    allocator.every_trace(wastes_no_block)


def covers(play: Play) -> None:
    """A place for every token."""
    for step in play:
        check_cover(play, step)


@pytest.mark.requirement("alloc/table-covers-tokens")
@KINDS
def test_table_covers_tokens(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Also of what was found, forked and cut."""
    allocator.every_trace(covers, caching=caching)


def pins(play: Play) -> None:
    """New blocks are nobody's."""
    for step in play:
        check_distinct(play, step)


@pytest.mark.requirement("alloc/pinned-is-safe")
@KINDS
def test_pinned_is_safe(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Pools so small that whatever can be evicted is."""
    allocator.every_trace(pins, caching=caching)


def writes_alone(play: Play) -> None:
    """No write into a block of two."""
    for step in play:
        check_single_writer(play, step)


@pytest.mark.requirement("alloc/single-writer")
@pytest.mark.parametrize("which", ["forks", "hits"])
def test_single_writer(allocator: AllocatorUnderTest, which: str) -> None:
    """Blocks that a fork shares, and those that a hit shares."""
    if which == "forks":
        allocator.need("fork", "nothing shares a block that is not full")
    else:
        allocator.need("prefix_cache", "nothing is found")
    kinds = ("allocate", "append", "finish", "fork") if which == "forks" else None
    allocator.every_trace(writes_alone, caching=which == "hits", kinds=kinds, about=which.removesuffix("s"))


def reads_its_own(play: Play) -> None:
    """What was written stands there as long as anyone reads it."""
    for step in play:
        check_contents(play, step)


@pytest.mark.requirement("alloc/no-use-after-free")
@KINDS
def test_no_use_after_free(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Sequences that come and go beside others that stay."""
    allocator.every_trace(reads_its_own, caching=caching)


def shares_full_blocks(play: Play) -> None:
    """Full blocks are the parent's own, the partial one is copied at most."""
    for step in play:
        if step.operation != "fork" or step.refused or step.parent is None:
            continue
        full = step.parent.num_computed // play.pool.block_size
        mine, theirs = step.held.table[:full], step.parent.table[:full]
        took = step.free_before - step.free_after
        if mine != theirs or took > 1:
            fail(f"{step.held.name} shares the {full} full blocks of {step.parent.name}, {text(theirs)}, and takes "
                 "one for the rest at most", f"its first are {text(mine)}, and {took} blocks were taken")


@pytest.mark.requirement("alloc/fork-shares-all-full-blocks")
def test_fork_shares_all_full_blocks(allocator: AllocatorUnderTest) -> None:
    """Forks of sequences of every length, and forks of forks."""
    allocator.every_trace(shares_full_blocks, kinds=("allocate", "append", "fork", "finish"), about="fork")


def frees_in_any_order(play: Play) -> None:
    """Oldest first, newest first, every second: in the end all is free, and the others read their own all the while."""
    new = room_when_new(play)
    for order in ("oldest first", "newest first", "every second first"):
        for _ in play:
            pass
        going = list(play.live)
        if order == "newest first":
            going.reverse()
        elif order == "every second first":
            going = going[1::2] + going[::2]
        for held in going:
            step = play.free(held)
            check_contents(play, step)
        free, left = play.num_free(), room(play)
        if (free, left) != (play.pool.num_blocks, new):
            fail(f"given back {order}, {play.pool.num_blocks} blocks are free, room for {new} sequences of one token",
                 f"{free} are free, room for {left}", hint="what a sequence gives back depends on who is still there")


@pytest.mark.requirement("alloc/free-order-irrelevant")
@KINDS
def test_free_order_irrelevant(allocator: AllocatorUnderTest, caching: bool) -> None:
    """The same trace, given back in three orders."""
    allocator.every_trace(frees_in_any_order, caching=caching)
