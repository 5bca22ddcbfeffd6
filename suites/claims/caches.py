"""Prefix caches on Mooncake's own trace: what share of the prompts' blocks plain LRU finds, by capacity."""

from __future__ import annotations

from collections import OrderedDict

from pabench.claims import Bench, Shown
from pabench.traces import read_trace

CONVERSATION = "mooncake_conversation_trace.jsonl"
_TRIED = {1_000_000: 5.3, 3_000_000: 13.6, 10_000_000: 28.5, 50_000_000: 36.4, None: 36.64}


def lru_hits(bench: Bench, capacity_tokens: int | None) -> float:
    """Percent of all prompts' blocks found. The blocks of a prompt are looked up until one is missing; then all of them
    are the newest.
    """
    assert bench.traces is not None, "the row needs the trace"
    trace = read_trace(bench.traces / CONVERSATION)
    assert trace.prefixes is not None, "Mooncake's traces tell hashes"
    size = trace.prefixes.block_tokens
    capacity = float("inf") if capacity_tokens is None else capacity_tokens // size
    held: OrderedDict[int, None] = OrderedDict()
    hits = blocks = 0
    for at in range(len(trace)):
        ids = trace.prefixes.of(at)
        found = 0
        while found < len(ids) and ids[found] in held:
            found += 1
        hits += found
        blocks += len(ids)
        for block in ids:
            held[block] = None
            held.move_to_end(block)
        while len(held) > capacity:
            held.popitem(last=False)
    return 100 * hits / blocks


def lru_curve(bench: Bench) -> Shown:
    """Hit rate by capacity."""
    ours = {capacity: lru_hits(bench, capacity) for capacity in _TRIED}
    told = ", ".join(f"{'infinite' if capacity is None else f'{capacity // 1_000_000}M'} {share:.1f}"
                     for capacity, share in ours.items())
    return Shown(told + " %", all(abs(ours[capacity] - share) <= 1 for capacity, share in _TRIED.items()))


def reuse_ratio(bench: Bench) -> Shown:
    """Table 2's prefix-cache ratio of the conversation trace: blocks seen before over blocks."""
    assert bench.traces is not None, "the row needs the trace"
    trace = read_trace(bench.traces / CONVERSATION)
    assert trace.prefixes is not None, "Mooncake's traces tell hashes"
    seen: set[int] = set()
    again = blocks = 0
    for at in range(len(trace)):
        ids = trace.prefixes.of(at)
        blocks += len(ids)
        again += sum(block in seen for block in ids)
        seen.update(ids)
    share = 100 * again / blocks
    return Shown(f"{share:.1f} %", abs(share - 40) <= 2, "of the blocks that were seen before, in the whole public "
                                                         "trace; "
                 "theirs may cover more than was published")
