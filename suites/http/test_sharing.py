"""Blocks that several sequences share or inherit: through a prefix, a cache or a fork."""

from __future__ import annotations

import pytest

from pabench.conformance.engine import EngineUnderTest, unsupported
from pabench.conformance.failure import fail
from pabench.conformance.prompts import fork_of_prompt_length, rings_with_shared_prefix
from pabench.conformance.verify import FORK_TEMPERATURE, Ask
from pabench.engines.base import GenerationRequest
from pabench.probe import Fork, Ring

# Samples of a fork are all alike by chance with probability 2^-(n-1): tried until that is below 2^-20.
_DOUBLINGS = 20


@pytest.mark.requirement("http/cold-equals-warm")
@pytest.mark.parametrize("offset", [0, 5], ids=["whole-blocks", "partial-block"])
def test_cold_equals_warm(engine: EngineUnderTest, offset: int) -> None:
    """Cold, at once again, after others have churned the pool, and with one more block behind the cached ones.

    Each answer goes round twice: a key at a wrong position misleads only when its token is looked up again.
    """
    block = engine.edge
    blocks = min(3, (engine.longest - block - 3 * offset) // (3 * block))
    if blocks < 1:
        unsupported(f"{engine.block_text}: a prompt of a block, read twice, does not fit into {engine.longest} tokens")
    length = blocks * block + offset
    room = len(engine.spec.paired_ids) - length
    churn_len = min(5 * block, engine.longest // 2, room)
    churn = [churn_len] * min(engine.profile.concurrency, room // churn_len)
    for crowd in engine.rings([length, *churn]):
        again = Ask(crowd[0], 2 * length, "A")
        others = [Ask(ring, 4, f"churn {i}") for i, ring in enumerate(crowd[1:])]
        for state in ("cold", "warm, two at once"):
            engine.case = f"{engine.block_text}; one ring of {length} prompt tokens, {state}; greedy, two rounds"
            engine.ask([again] * (2 if "two" in state else 1))
        engine.case = (f"{engine.block_text}; a ring of {length} prompt tokens after {len(others)} others; "
                       "greedy, two rounds")
        engine.ask(others, concurrency=engine.profile.concurrency)
        engine.ask([again])
        longer = Ring(crowd[0].tokens, crowd[0].salt, length + block)
        engine.case = (f"{engine.block_text}; a prompt of {length} tokens, then one of {length + block} that begins "
                       "with it")
        engine.ask([Ask(longer, 2 * length, "A")])


@pytest.mark.requirement("http/same-block-behind-another-prefix")
def test_same_block_behind_another_prefix(engine: EngineUnderTest) -> None:
    """X+S and Y+S differ in their salt alone, that is in their first block. S must be read from behind its own.

    X+S is cached first, then Y without S: only so does a cache that forgets the parent find S behind the wrong one.
    """
    block = engine.edge
    length = min(4 * block + 1, engine.longest // 2)
    if length <= 2 * block:
        unsupported(f"{engine.block_text}: X and S, a block each, do not fit into {engine.longest} tokens")
    for (ring,) in engine.rings([length]):
        other_salt = next(salt for salt in engine.spec.salt_ids if salt != ring.salt)
        behind_y = Ring(ring.tokens, other_salt)
        engine.case = f"{engine.block_text}; X+S of {length} tokens, then Y alone of {block + 1}, then Y+S; greedy"
        engine.ask([Ask(ring, length, "X+S")])
        engine.generate([GenerationRequest(behind_y.prompt[: block + 1], max_tokens=1, stream=False)])
        engine.ask([Ask(behind_y, length, "Y+S")])


@pytest.mark.requirement("http/shared-prefix-divergence")
def test_shared_prefix_divergence(engine: EngineUnderTest) -> None:
    """A prefix that ends inside a block, alone first, then continued by several at once, then once more."""
    block = engine.edge
    shared, tail = 2 * block + 5, block
    if shared + tail > engine.longest // 3:
        shared, tail = block + 5, block // 2
    room = engine.longest - (shared + tail + 1)
    if room < shared + tail:
        unsupported(f"{engine.block_text}: a prompt of {shared + tail + 1} tokens, which ends in its second block, "
                    f"cannot be read whole within {engine.longest} tokens")
    count = 3
    rings = rings_with_shared_prefix(engine.spec, engine.rng, shared, tail, count)
    tokens = min(2 * len(rings[0].tokens), room)
    asks = [Ask(ring, tokens, f"{'ABC'[i]}") for i, ring in enumerate(rings)]
    engine.case = f"{engine.block_text}; A, B and C share {shared} tokens; {count} concurrent; greedy {tokens} tokens"
    engine.generate([GenerationRequest(rings[0].prompt[:shared], max_tokens=1, stream=False)])
    engine.ask(asks)
    engine.ask(asks[::-1])
    # The first holder of the shared blocks goes while the second still reads them.
    first, second = asks[0], Ask(rings[1], min(2 * tokens, room), "B")
    engine.case = f"{engine.block_text}; A and B share {shared} tokens; A ends first, B reads on; greedy"
    engine.ask([Ask(first.prompt, 4, "A"), second, Ask(rings[2], 8, "C")])


@pytest.mark.requirement("http/n-samples-isolated")
@pytest.mark.parametrize("offset", [0, 1, 5], ids=["full-block", "one-slot", "partial-block"])
def test_n_samples_isolated(engine: EngineUnderTest, offset: int) -> None:
    """Samples that part at a fork and meet it again: each must then choose as it did, and only its own slots know."""
    block, samples = engine.edge, engine.profile.samples
    blocks = min(2, (engine.longest - 16) // (3 * block))
    if blocks < 1:
        unsupported(f"{engine.block_text}: samples of a prompt of a block do not fit into {engine.longest} tokens")
    length = blocks * block + offset
    tried = 0
    while tried * (samples - 1) < _DOUBLINGS:
        fork = fork_of_prompt_length(engine.spec, engine.rng, length)
        engine.case = (f"{engine.block_text}; a fork of {length} prompt tokens; n {samples}, {length} tokens, "
                       f"temperature {FORK_TEMPERATURE}")
        ask, answer = engine.ask_samples(Ask(fork, length, "A", n=samples, temperature=FORK_TEMPERATURE))
        samples, tried = ask.n, tried + 1
        if len(_branches(fork, [choice.token_ids or [] for choice in answer.choices])) == 2:
            engine.note = f"n {samples}"
            return
    fail(f"{samples} samples of one request take both branches of a fork of probability 1/2 each, in one of {tried} "
         "requests", "in each request all took the same",
         hint="is the temperature obeyed, and is each sample drawn for itself?")


def _branches(fork: Fork, answers: list[list[int]]) -> set[int | None]:
    return {fork.branch(ids) for ids in answers}
