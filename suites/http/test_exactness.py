"""One sequence alone, many at once, and more than fit: every token is the one that its prompt demands."""

from __future__ import annotations

import pytest

from pabench.conformance.engine import EngineUnderTest, unsupported
from pabench.conformance.failure import fail
from pabench.conformance.prompts import edge_lengths, fork_of_prompt_length, longest_fork
from pabench.conformance.verify import Ask


@pytest.mark.requirement("http/ring-exact")
@pytest.mark.parametrize("offset", [-1, 0, 1], ids=["kB-1", "kB", "kB+1"])
def test_ring_exact(engine: EngineUnderTest, offset: int) -> None:
    """Prompts that end one before, at and one behind a block edge, one at a time.

    A ring reads every slot of its prompt once. A fork under greedy decoding reads a slot that was generated: the
    choice at its first output, at position kB + offset, is remembered nowhere else.
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
        if length > longest_fork(engine.spec):
            break
        fork = fork_of_prompt_length(engine.spec, engine.rng, length)
        engine.case = f"{engine.block_text}; one fork of {length} prompt tokens; greedy, {length} tokens"
        engine.ask([Ask(fork, length, "A")])


@pytest.mark.requirement("http/concurrent-isolation")
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


@pytest.mark.requirement("http/preemption-exact")
def test_preemption_exact(engine: EngineUnderTest) -> None:
    """Sequences that fit when they start and not when they have grown."""
    capacity = engine.geometry.capacity_tokens
    if capacity is None:
        unsupported("the engine does not tell how many blocks it has")
    if capacity > engine.profile.pool_tokens:
        unsupported(f"the pool of {capacity} slots is larger than the {engine.profile.pool_tokens} that profile "
                    f"{engine.profile.name} fills: start the engine with fewer blocks to have this checked")
    before = engine.metrics()
    if before is None or before.preemptions is None:
        unsupported("the engine does not count preemptions")
    prompt_len = min(engine.edge + 5, engine.longest // 4)
    total = min(engine.longest - 1, max(prompt_len + 8, min(220, capacity // 3)))
    count = engine.num_rings(2 * capacity // total + 2, prompt_len)
    engine.case = (f"pool of {capacity} slots; {count} rings of {prompt_len} prompt tokens at once; "
                   f"greedy {total - prompt_len} tokens")
    ring_crowd = engine.rings([prompt_len] * count)[int(engine.rng.integers(2))]
    engine.ask([Ask(ring, total - prompt_len, f"request {i}") for i, ring in enumerate(ring_crowd)])
    after = engine.metrics_when_stable(lambda sample: sample.preemptions != before.preemptions, within_s=1.0)
    if after.preemptions is None or after.preemptions < before.preemptions:
        fail("the count of preemptions grows", f"{before.preemptions:g} before, {after.preemptions} after")
    if after.preemptions == before.preemptions:
        unsupported(f"the engine preempted nothing: {count} sequences of {total} tokens waited for room instead")
    engine.note = f"{after.preemptions - before.preemptions:g} preemptions"
