"""What has to hold after an operation, each with all terms in its failure text."""

from __future__ import annotations

from collections.abc import Iterable

from pabench.conformance.alloc.model import Block
from pabench.conformance.alloc.play import Play, Step
from pabench.conformance.failure import fail


def check_sum(play: Play, step: Step) -> None:
    """Free blocks and those that sequences hold are all there are."""
    held = {block for held in play.live for block in held.table if block is not None}
    total, there = step.free_after + len(held), play.pool.num_blocks
    if total == there:
        return
    lost = there - total
    fail(f"free + held = {there} blocks after each operation",
         f"after {play.log[-1].partition(' ->')[0]!r}: free {step.free_after} + held {len(held)} = {total} of {there}",
         hint="what is missing is neither free nor held: a reference is not given back" if lost > 0 else
         "what is too much is counted twice: given back twice, or given back while it is held")


def check_distinct(play: Play, step: Step) -> None:
    """A new block has one holder, and stands once in its table."""
    if step.held not in play.live:
        return
    table = [block for block in step.held.table if block is not None]
    if len(set(table)) < len(table):
        fail(f"{step.held.name} holds each of its blocks once", f"its blocks are {text(table)}",
             hint="a block came from the free list twice")
    for block in fresh(play, step):
        others = [held.name for held in play.holders(block) if held is not step.held]
        if others:
            fail(f"a block that {step.held.name} gets as a new one is held by nobody else",
                 f"block {block} is held by {', '.join(others)} too",
                 hint="a block that is in use was on the free list, or was evicted: what a hit or a fork hands out "
                      "has to leave the list of what can be evicted")


def check_contents(play: Play, step: Step) -> None:
    """Every sequence still reads what it has written."""
    size = play.pool.block_size
    for held in play.live:
        for position in range(max(held.num_dropped, 0), held.num_computed):
            at = position // size
            block = held.table[at] if at < len(held.table) else None
            found = None if block is None else play.memory[block][position % size]
            if found != held.prefixes[position]:
                place = f"block {block}, slot {position % size}" if block is not None else "no block"
                own = play.prefixes.text(held.prefixes[position])
                fail(f"{held.name} reads at position {position} ({place}): {own}",
                     f"there stands: {play.prefixes.text(found)}",
                     hint="a block was given to another sequence while this one reads it, or a copy was not asked for")


def fresh(play: Play, step: Step) -> list[Block]:
    """Blocks that the sequence of a step has got as new ones: not found, not shared by a fork, not its own before."""
    if step.held not in play.live or step.operation not in ("allocate", "append", "swap_in", "fork"):
        return []
    found = step.held.table[: -(-step.num_cached // play.pool.block_size)]
    if step.operation == "fork":  # what the parent holds too
        found = [block for block in step.held.table if block in step.held_before]
    return [block for block in step.held.table if block is not None and block not in found and block not in step.before]


def text(blocks: Iterable[Block | None]) -> str:
    """Blocks in a row."""
    return " ".join("-" if block is None else str(block) for block in blocks) or "none"
