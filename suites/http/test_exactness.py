"""One sequence alone, and many at once: every token is the one that its prompt demands."""

from __future__ import annotations

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.prompts import (
    SHORTEST_RING,
    edge_lengths,
    longest_braid,
    second_turn,
)
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask

_WAVES = 2     # how often a batch shrinks and grows again
_LEAVING = 3   # sequences of eight that end early: eight run, then five, then eight
_STAYING = 5


@pytest.mark.requirement("http/ring-exact")
@pytest.mark.parametrize("offset", [-1, 0, 1], ids=["kB-1", "kB", "kB+1"])
def test_ring_exact(engine: EngineUnderTest, offset: int) -> None:
    """Prompts that end one before, at and one behind a block edge, one at a time.

    A ring reads every slot of its prompt once. A braid reads slots that were generated, from the one at position
    kB + offset on: on its second round it has to choose as on its first, which is remembered nowhere else.
    """
    longest = min((engine.longest - 8) // 2, len(engine.spec.paired_ids))
    lengths = edge_lengths(engine.edge, engine.profile.block_multiples, offset, longest)
    if not lengths:
        unsupported(f"{engine.block_text}: no ring that ends at the edge of a block can be read whole within "
                    f"{engine.longest} tokens")
    for length in lengths:
        for (ring,) in engine.rings([length]):
            engine.case = f"{engine.block_text}; one ring of {length} prompt tokens; greedy, {length} tokens"
            engine.ask([Ask(ring, length, "A")])
    for length in lengths:
        if length > longest_braid(engine.spec):
            break
        engine.case = f"{engine.block_text}; one braid of {length} prompt tokens; {length} tokens"
        engine.ask([engine.braid(length, length, "A")])


@pytest.mark.requirement("http/ring-exact", case="shorter-than-a-block")
def test_short_rings(engine: EngineUnderTest) -> None:
    """The shortest prompts, one at a time, each read over the edge of its first block."""
    for length in (SHORTEST_RING, SHORTEST_RING + 1, engine.edge // 2 + 1):
        tokens = min(engine.edge + 2, engine.longest - length)
        for (ring,) in engine.rings([length]):
            engine.case = f"{engine.block_text}; one ring of {length} prompt tokens; greedy, {tokens} tokens"
            engine.ask([Ask(ring, tokens, "A")])


@pytest.mark.requirement("http/concurrent-isolation", case="crowd")
def test_concurrent_isolation(engine: EngineUnderTest) -> None:
    """A crowd of rings without a common token, of many lengths, coming and going: each foreign token has an owner."""
    profile, block = engine.profile, engine.edge
    longest = min((engine.longest - 8) // 2, 5 * block, len(engine.spec.paired_ids) // profile.rings)
    lengths = [int(length) for length in engine.rng.integers(8, longest, profile.rings)]
    tokens = [int(count) for count in engine.rng.integers(longest // 2, longest + 4, profile.rings)]
    engine.case = (f"{engine.block_text}; {profile.rings} rings of {min(lengths)} to {max(lengths)} prompt tokens, "
                   f"{profile.concurrency} at once; greedy {min(tokens)} to {max(tokens)} tokens")
    for crowd in engine.rings(lengths):
        asks = [Ask(ring, count, f"request {i}") for i, (ring, count) in enumerate(zip(crowd, tokens, strict=True))]
        engine.ask(asks, concurrency=profile.concurrency)


@pytest.mark.requirement("http/concurrent-isolation", case="shrinking-batch")
def test_shrinking_batch(engine: EngineUnderTest) -> None:
    """Eight sequences, then five, then eight again: what a large batch left behind must not reach a smaller one.

    Those that stay are braids: they read what they generated meanwhile.
    """
    length = min(engine.edge + 5, engine.longest // 3)
    short, long = engine.edge // 2, min((_WAVES + 2) * engine.edge, engine.longest - length)
    engine.case = (f"{engine.block_text}; {_STAYING} braids of {length} prompt tokens, {long} tokens; beside "
                   f"them {_LEAVING} of {short} tokens come and go, {_WAVES + 1} times")
    leaving = engine.rings([length] * _LEAVING * (_WAVES + 1))[0]
    staying = engine.start([engine.braid(length, long, f"staying {i}") for i in range(_STAYING)])
    for first in range(0, len(leaving), _LEAVING):
        engine.ask([Ask(ring, short, f"leaving {i}") for i, ring in enumerate(leaving[first : first + _LEAVING])])
    staying.verify()


@pytest.mark.requirement("http/concurrent-isolation", case="conversations")
def test_conversations(engine: EngineUnderTest) -> None:
    """Twice as many conversations as requests at once, turn by turn: each must find its own first turn again."""
    block, profile = engine.edge, engine.profile
    length, answer = min(2 * block + 3, engine.longest // 4), min(block // 2, engine.longest // 8)
    tail = answer
    count = engine.num_rings(2 * profile.concurrency, length + tail)
    tokens = min(length - 4, engine.longest // 4)
    rings = engine.rings([length] * count)[0]
    engine.case = (f"{engine.block_text}; {count} conversations, {profile.concurrency} at once: rings of {length} "
                   f"prompt tokens, {answer} tokens of answer, {tail} new tokens behind it, {tokens} tokens of answer")
    engine.ask([Ask(ring, answer, f"conversation {i}, turn 0") for i, ring in enumerate(rings)],
               concurrency=profile.concurrency)
    for turn in range(1, max(2, profile.rounds - 2)):
        asks = [Ask(second_turn(engine.spec, engine.rng, ring, answer, tail), tokens, f"conversation {i}, turn {turn}")
                for i, ring in enumerate(rings)]
        engine.ask([asks[i] for i in engine.rng.permutation(count)], concurrency=profile.concurrency)
