"""More than fits: sequences that are preempted, and go on as if they had not been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.prompts import (
    SHORTEST_RING,
    fork_of_prompt_length,
    long_rings,
    longest_fork,
)
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask, fork_temperature
from pabench.engines.base import Completion
from pabench.telemetry.vocabulary import KVSample

_DRAWS = 2  # of samples that end early or late by chance, and are preempted in between or not
_SHARE = 4  # prompts of samples that fill a pool, and samples of each


def _pool(engine: EngineUnderTest) -> int:
    """Slots of a pool that the profile can overrun. Skips the test, as UNSUPPORTED, where it cannot."""
    capacity = engine.geometry.capacity_tokens
    if capacity is None:
        unsupported("the engine does not tell how many blocks it has")
    if capacity > engine.profile.pool_tokens:
        unsupported(f"the pool of {capacity} slots is larger than the {engine.profile.pool_tokens} that profile "
                    f"{engine.profile.name} fills: start the engine with fewer blocks to have this checked")
    return capacity


def _count_before(engine: EngineUnderTest) -> KVSample | None:
    """The metrics before a case; None where they do not count preemptions."""
    if not engine.can("running_metrics"):
        return None
    before = engine.metrics_renewed(lambda sample: True, within_s=engine.settle_s)
    return before if before is not None and before.preemptions is not None else None


def _counted(engine: EngineUnderTest) -> KVSample:
    """The same. Skips the test, as UNSUPPORTED, where there are none."""
    before = _count_before(engine)
    if before is None:
        unsupported("the engine does not count preemptions")
    return before


def _check_preempted(engine: EngineUnderTest, before: KVSample | None) -> None:
    """Skip the test, as UNSUPPORTED, where all is right, but not known to have been preempted."""
    if before is None:
        unsupported("all answers are right, but the engine does not count preemptions: there may have been none")
    after = engine.metrics_when_stable(lambda sample: sample.preemptions != before.preemptions,
                                       within_s=1.0 + engine.cadence_s)
    if after.preemptions is None or before.preemptions is None or after.preemptions < before.preemptions:
        fail("the count of preemptions grows", f"{before.preemptions} before, {after.preemptions} after")
    if after.preemptions == before.preemptions:
        unsupported("the engine preempted nothing: sequences waited for room instead")
    engine.note = f"{after.preemptions - before.preemptions:g} preemptions"


@pytest.mark.requirement("http/preemption-exact", case="rings")
def test_preemption_exact(engine: EngineUnderTest) -> None:
    """Sequences that fit when they start and not when they have grown. Half of them read what they generated."""
    capacity, before = _pool(engine), _counted(engine)
    prompt_len = min(engine.edge + 5, engine.longest // 4)
    total = min(engine.longest - 1, max(prompt_len + 8, min(220, capacity // 3)))
    count = engine.num_rings(2 * capacity // total + 2, prompt_len)
    engine.case = (f"pool of {capacity} slots; {count} rings and braids of {prompt_len} prompt tokens at "
                   f"once; {total - prompt_len} tokens")
    rings = engine.rings([prompt_len] * count)[int(engine.rng.integers(2))]
    crowd = [Ask(ring, total - prompt_len, f"request {i}") for i, ring in enumerate(rings)]
    for i in range(1, count, 2):
        crowd[i] = engine.braid(prompt_len, total - prompt_len, f"request {i}")
    _check_counts(engine, crowd, engine.ask(crowd))
    _check_preempted(engine, before)


def _check_counts(engine: EngineUnderTest, asks: Sequence[Ask], answers: Sequence[Completion]) -> None:
    """What was computed again is counted once: usage is as far from the truth for all, if it is (see usage-exact)."""
    off = [(answer.usage.prompt_tokens - len(ask.prompt.prompt), answer.usage.completion_tokens - ask.tokens)
           for ask, answer in zip(asks, answers, strict=True) if answer.usage is not None and engine.is_probe]
    if len(set(off)) > 1:
        usual = max(set(off), key=off.count)
        odd = next(at for at, one in enumerate(off) if one != usual)
        fail(f"usage of {asks[odd].name} as that of the others: {usual[0]:+} prompt tokens and {usual[1]:+} generated "
             "ones beside those that were sent and that came", f"{off[odd][0]:+} and {off[odd][1]:+}",
             hint="does what a preempted sequence had generated count as its prompt?")


@pytest.mark.requirement("http/preemption-exact", case="two-of-half-the-pool")
def test_two_large(engine: EngineUnderTest) -> None:
    """Two sequences, each of which needs more than half of the pool in the end: one has to give way to the other."""
    capacity, before = _pool(engine), _count_before(engine)
    total = capacity * 3 // 5
    if total > engine.longest:
        unsupported(f"no sequence of more than half of the pool of {capacity} slots fits into {engine.longest} tokens")
    prompt_len = min(total - 4 * engine.edge, capacity // 2 - 2 * engine.edge,  # so that both can begin
                     len(engine.spec.paired_ids) // 2)
    if prompt_len < SHORTEST_RING:
        unsupported(f"{engine.block_text}: a pool of {capacity} slots has no room for two rings that grow by 4 blocks")
    tokens = min(total - prompt_len, engine.longest - prompt_len)
    engine.case = (f"pool of {capacity} slots; 2 rings of {prompt_len} prompt tokens at once; greedy {tokens} tokens")
    engine.ask([Ask(ring, tokens, f"request {i}") for i, ring in enumerate(engine.rings([prompt_len] * 2)[0])])
    _check_preempted(engine, before)


@pytest.mark.requirement("http/preemption-exact", case="samples-of-unequal-length")
def test_preempted_samples(engine: EngineUnderTest) -> None:
    """Samples of one prompt, some of which stop early: those that remain are preempted without them.

    A sample ends when it has followed the first branch of its fork, and goes on where it took the other one.
    """
    engine.need("n", "several samples of one prompt")
    engine.need("sampling", "samples that differ")
    engine.need("stop_token_ids", "samples of unequal length")
    capacity, before = _pool(engine), _counted(engine)
    prompt_len = min(engine.edge + 5, engine.longest // 4)
    total = min(engine.longest - 1, max(prompt_len + 8, min(160, capacity // 4)))
    # Half of the samples, about, stop early: as many requests as fill the pool twice with those that do not.
    count = max(3, 2 * capacity // total)
    engine.case = (f"pool of {capacity} slots; {count} forks of {prompt_len} prompt tokens at once, n 2, up to "
                   f"{total - prompt_len} tokens; a sample stops at the end of the first branch; {_DRAWS} times")
    for _ in range(_DRAWS):
        forks = [fork_of_prompt_length(engine.spec, engine.rng, prompt_len) for _ in range(count)]
        asks = [Ask(fork, total - prompt_len, f"request {i}", n=2, temperature=fork_temperature(engine.spec),
                    stop_token_ids=(fork.branches[0][-1],)) for i, fork in enumerate(forks)]
        _check_reasons(asks, engine.ask(asks))
    _check_preempted(engine, before)


@pytest.mark.requirement("http/preemption-exact", case="samples-in-a-full-pool")
def test_samples_in_a_full_pool(engine: EngineUnderTest) -> None:
    """Prompts that take the pool to its last block, behind one that they all wait for: nothing is left for their forks.

    Whoever gets no block for a sample has to let it wait, or somebody else.
    """
    engine.need("n", "several samples of one prompt")
    engine.need("sampling", "samples that differ")
    capacity, block = _pool(engine), engine.edge
    blocks = min(capacity // (_SHARE * block), min(engine.longest * 3 // 5, longest_fork(engine.spec)) // block)
    if blocks < 3:
        unsupported(f"{engine.block_text}: the pool of {capacity} slots is too small for {_SHARE} prompts of 3 blocks")
    length = (blocks - 1) * block + block // 2
    count = capacity // (blocks * block)
    (long,) = long_rings(engine.spec, engine.rng, [min(engine.longest - 8, engine.profile.prompt_tokens // 2)], 4)
    forks = [fork_of_prompt_length(engine.spec, engine.rng, length) for _ in range(count + 1)]
    asks = [Ask(fork, 2 * block, f"request {i}", n=_SHARE, temperature=engine.sampling_temperature)
            for i, fork in enumerate(forks)]
    engine.case = f"{engine.block_text}; a fork of {length} prompt tokens; n {_SHARE}, {2 * block} tokens"
    taken, _ = engine.ask_samples(asks.pop())
    tokens = min(block * _outgrowing(capacity // block, blocks, taken.n), engine.longest - length)
    before = _count_before(engine)
    engine.case = (f"pool of {capacity} slots; {count} forks of {length} prompt tokens at once, behind a prompt of "
                   f"{len(long.prompt)}; n {taken.n}, {tokens} tokens")
    engine.ask([Ask(long, 1, "long"), *(replace(ask, n=taken.n, tokens=tokens) for ask in asks)])
    _check_preempted(engine, before)


def _outgrowing(pool: int, blocks: int, samples: int) -> int:
    """Blocks that a sample has to write to be preempted even where a prompt waits until all its samples can begin.

    Then as many prompts of `blocks` run as fit with a last block for each of their `samples`, and what is left of the
    `pool` is less than one more of them takes.
    """
    together = blocks - 1 + samples
    return 2 + together // (max(1, pool // together) * samples)


def _check_reasons(asks: Sequence[Ask], answers: Sequence[Completion]) -> None:
    for ask, answer in zip(asks, answers, strict=True):
        for choice in answer.choices:
            expected = "stop" if (choice.token_ids or [0])[-1] in ask.stop_token_ids else "length"
            if choice.finish_reason != expected:
                fail(f"{ask.name} sample {choice.index} ends with finish reason {expected!r}",
                     repr(choice.finish_reason))
