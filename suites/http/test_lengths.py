"""Prompts at the edges that an engine sets itself: its budget of prompt tokens a step, its longest sequence."""

from __future__ import annotations

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.prompts import long_rings
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask

_SMALLEST_BUDGET = 64  # prompt tokens a step
_READ_WHOLE = 256      # prompts up to this length are also read in full, together


def _budgets(engine: EngineUnderTest) -> list[int]:
    """Powers of two that a budget of prompt tokens may be, as far as the profile's and the engine's lengths go."""
    room = min(engine.longest - 2 * engine.edge, engine.profile.prompt_tokens)
    budgets, budget = [], _SMALLEST_BUDGET
    while budget < room:
        if budget > engine.edge + 8:
            budgets.append(budget)
        budget *= 2
    return budgets


@pytest.mark.requirement("http/chunk-boundary-exact", case="alone")
def test_chunk_boundary_alone(engine: EngineUnderTest) -> None:
    """Prompts of a power of two tokens, and one more and one less: budgets are such. The last slots are read.

    One at a time, so that each chunk is a whole budget, up to the last one.
    """
    budgets = _budgets(engine)
    if not budgets:
        unsupported(f"{engine.block_text}: no prompt beyond {_SMALLEST_BUDGET} tokens fits into {engine.longest}")
    read = engine.edge
    for budget in budgets:
        for offset in (-1, 0, 1):
            engine.case = (f"{engine.block_text}; a prompt of {budget + offset} tokens, the last {read} of them a "
                           f"ring; greedy {read + 1} tokens")
            (ring,) = long_rings(engine.spec, engine.rng, [budget + offset], read)
            engine.ask([Ask(ring, read + 1, "A")])
    engine.note = f"prompts of up to {budgets[-1] + 1} tokens"


@pytest.mark.requirement("http/chunk-boundary-exact", case="beside-decodes")
def test_chunk_boundary_beside_decodes(engine: EngineUnderTest) -> None:
    """Prompts around powers of two, all at once, while others decode: chunks end anywhere, and every slot is read."""
    longest = min(_READ_WHOLE, engine.profile.prompt_tokens // 4, engine.longest // 2 - 8)
    budgets = [budget for budget in _budgets(engine) if budget <= longest]
    if not budgets:
        unsupported(f"{engine.block_text}: no prompt beyond {_SMALLEST_BUDGET} tokens can be read whole within "
                    f"{engine.longest}")
    lengths = [budget + offset for budget in budgets for offset in (-1, 0, 1)]
    engine.case = (f"{engine.block_text}; rings of {', '.join(map(str, lengths))} prompt tokens at once, while 3 short "
                   "ones decode; greedy, a whole lap each")
    rings = engine.rings([12, 13, 14, *lengths])[int(engine.rng.integers(2))]
    decoding = engine.start([Ask(ring, 2 * engine.edge, f"decoding {i}") for i, ring in enumerate(rings[:3])])
    engine.ask([Ask(ring, length, f"prompt of {length}") for ring, length in zip(rings[3:], lengths, strict=True)])
    decoding.verify()


@pytest.mark.requirement("http/chunk-boundary-exact", case="with-a-seed")
def test_chunk_boundary_with_a_seed(engine: EngineUnderTest) -> None:
    """Drawn, each with a seed, and so many prompt tokens at once that most budgets cut them: what is drawn behind a
    part of a prompt is thrown away, and the generator of its request has to be set back.

    Rings, which say the same whatever is drawn: it is asked whether they are answered at all, and rightly.
    """
    engine.need("sampling", "drawn answers are asked for")
    if not engine.is_probe or engine.spec.is_soft:
        unsupported("what a drawn answer must be is known of a hard KV probe alone")
    length = min(engine.profile.prompt_tokens, engine.longest) - 2 * engine.edge
    if length < 2 * _SMALLEST_BUDGET:
        unsupported(f"{engine.block_text}: no prompt beyond {2 * _SMALLEST_BUDGET} tokens fits into {engine.longest}")
    read, count = engine.edge, 4
    engine.case = (f"{engine.block_text}; {count} prompts of {length} tokens at once, the last {read} of each a ring; "
                   f"temperature 1, a seed each, {read + 1} tokens")
    rings = long_rings(engine.spec, engine.rng, [length] * count, read)
    engine.ask([Ask(ring, read + 1, f"drawn {i}", temperature=1.0, seed=i + 1) for i, ring in enumerate(rings)])


@pytest.mark.requirement("http/max-length-exact")
@pytest.mark.parametrize("rest", ["two-blocks", "one-token"])
def test_max_length_exact(engine: EngineUnderTest, rest: str) -> None:
    """Prompt and answer together have exactly the longest length that the engine tells: right to the last token."""
    context, capacity = engine.geometry.context_tokens, engine.geometry.capacity_tokens
    if context is None:
        unsupported("the engine does not tell its longest context")
    if capacity is not None and capacity < context:
        unsupported(f"a sequence of {context} tokens does not fit into the pool of {capacity}")
    if context > engine.profile.prompt_tokens:
        unsupported(f"the context of {context} tokens is longer than the {engine.profile.prompt_tokens} that profile "
                    f"{engine.profile.name} fills: start the engine with a shorter one to have this checked")
    tokens = 1 if rest == "one-token" else min(2 * engine.edge, context // 2)
    read = min(engine.edge, (context - tokens) // 2)
    (ring,) = long_rings(engine.spec, engine.rng, [context - tokens], read)
    engine.case = f"{engine.block_text}; a prompt of {context - tokens} tokens and {tokens} of answer, {context} in all"
    (answer,) = engine.ask([Ask(ring, tokens, "A")])
    reason = answer.choices[0].finish_reason
    if reason != "length":
        fail(f"A ends with finish reason 'length' after {tokens} tokens", repr(reason))
