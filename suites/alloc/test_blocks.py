"""Which block belongs to whom: sums, holders, sharing, copies."""

from __future__ import annotations

import pytest

from pabench.conformance.alloc import AllocatorUnderTest, Play
from pabench.conformance.alloc.checks import check_sum
from pabench.conformance.failure import fail


def room(play: Play) -> int:
    """How many sequences of one token an idle pool holds. All are given back."""
    count = 0
    while count <= play.pool.num_blocks:
        step = play.allocate([100 + count])
        if step is None or step.refused:
            break
        count += 1
    while play.live:
        play.free(play.live[-1])
    return count


def conserves(play: Play) -> None:
    """The sum after each operation; at the end, as much room as in a new pool."""
    (empty := Play(play.adapter, play.pool, [])).begin()
    new = room(empty)
    for step in play:
        check_sum(play, step)
    for held in list(play.swapped):
        play.swapped.remove(held)
    while play.live:
        check_sum(play, play.free(play.live[0]))
    log = list(play.log)
    left = room(play)
    play.log[:] = log
    if left != new:
        fail(f"the pool, given back whole, holds {new} sequences of one token, as it did when new", f"it holds {left}",
             hint="blocks were lost on the way" if left < new else "the free list holds blocks twice")


@pytest.mark.requirement("alloc/conservation")
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "cached"])
def test_conservation(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Blocks are neither lost nor made."""
    allocator.every_trace(conserves, caching=caching)
