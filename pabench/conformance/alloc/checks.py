"""What has to hold after an operation, each with all terms in its failure text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pabench.conformance.alloc.model import Block, Held, Memory, Prefixes
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
    check_reads(play.live, play.memory, play.prefixes)


def check_reads(sequences: Iterable[Held], memory: Memory, prefixes: Prefixes) -> None:
    """What sequences have computed, and their windows still reach, stands in their blocks."""
    size = memory.block_size
    for held in sequences:
        for position in range(max(held.num_dropped, 0), held.num_computed):
            at = position // size
            block = held.table[at] if at < len(held.table) else None
            found = None if block is None else memory[block][position % size]
            if found != held.prefixes[position]:
                place = f"block {block}, slot {position % size}" if block is not None else "no block"
                own = prefixes.text(held.prefixes[position])
                fail(f"{held.name} reads at position {position} ({place}): {own}",
                     f"there stands: {prefixes.text(found)}",
                     hint="a block was given to another sequence while this one reads it, or a copy was not asked for")


def check_cover(play: Play, step: Step) -> None:
    """A sequence has a block for each of its tokens that the window still reaches."""
    size = play.pool.block_size
    for held in play.live:
        needed = -(-held.num_tokens // size)
        if len(held.table) < needed:
            fail(f"{held.name} has blocks for its {held.num_tokens} tokens: {needed} of {size}",
                 f"it has {len(held.table)}: {text(held.table)}",
                 hint="the next write goes behind the end of the table: count the blocks from all tokens, those in "
                      "host memory, behind a window or taken as look-ahead included")
        first = max(held.num_dropped, 0) // size
        holes = [at for at in range(first, needed) if held.table[at] is None]
        if holes:
            fail(f"{held.name} keeps the blocks of positions {first * size} to {held.num_tokens - 1}, which the window "
                 f"of {play.pool.window} reaches", f"block {holes[0]} of its table was given up: {text(held.table)}")


def check_unchanged(play: Play, step: Step) -> None:
    """A refusal changes nothing that can be seen."""
    if step.refused and (step.free_after, play.tables()) != (step.free_before, step.tables_before):
        fail(f"{step.operation} of {step.held.name}, refused, changes nothing: free {step.free_before}, "
             f"{_tables(step.tables_before)}", f"free {step.free_after}, {_tables(play.tables())}",
             hint="what was taken before the refusal is not given back: check for room first, then take")


def check_hit(play: Play, step: Step) -> None:
    """What is said to be found stands there, computed, behind the same prefix."""
    if step.refused or not step.num_cached:
        return
    held, size = step.held, play.pool.block_size
    if step.num_cached > held.num_tokens:
        fail(f"at most the {held.num_tokens} tokens of {held.name} are found", f"{step.num_cached} are")
    for position in range(max(held.num_dropped, 0), step.num_cached):  # a window needs no more
        block = held.table[position // size]
        found = None if block is None else play.memory[block][position % size]
        if found != held.prefixes[position]:
            fail(f"of the {step.num_cached} tokens found for {held.name}, position {position} (block {block}, slot "
                 f"{position % size}) holds: {play.prefixes.text(held.prefixes[position])}",
                 f"there stands: {play.prefixes.text(found)}",
                 hint=_why_false(play, block, held.prefixes[position], found))


def check_single_writer(play: Play, step: Step) -> None:
    """A block that is written has one holder, and is not to be found."""
    size = play.pool.block_size
    for position in step.written:
        if position // size >= len(step.before):
            continue
        block = step.before[position // size]  # a manager may put another of the same contents in its place then
        others = [held.name for held in play.holders(block) if held is not step.held]
        if others:
            fail(f"{step.held.name} alone holds the block that it writes position {position} into",
                 f"block {block} is held by {', '.join(others)} too",
                 hint="copy a shared block before the first write to it, and share none that is not full")


def _tables(tables: Mapping[str, Sequence[Block | None]]) -> str:
    return ", ".join(f"{name} {text(table)}" for name, table in tables.items()) or "no sequences"


def _why_false(play: Play, block: Block | None, wanted: int, found: int | None) -> str:
    if found is None:
        return "nothing was ever computed there: a block may be found when a step has computed it, not before"
    own, other = play.prefixes.text(wanted), play.prefixes.text(found)
    if own.rpartition("]")[2].split()[-1:] == other.rpartition("]")[2].split()[-1:]:
        return "the block's own tokens may agree; what stands before it, or the extra keys, do not: a key covers all"
    if play.memory.is_complete(block):
        return "nobody was given the block since: other tokens have the same key, which has to cover each of them whole"
    return "the block was given to another sequence since: forget what it held when it is handed out"


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
