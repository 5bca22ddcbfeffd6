"""The probe whose layers see a window and everything by turns: each reads its own, from blocks that some still need.

Engines keep a cache of each type, out of one pool: what has left the window may go where it is kept for windowed
layers, and must stay where it is kept for the others. An answer is put together of both, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pabench.conformance.churn import ask_from_cache, not_overrun
from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask
from pabench.probe import Parted, draw_parted, longest_parted, shortest_parted

_WINDOWS = 2   # an answer goes over so many, so that blocks leave
_LONGEST = 4   # windows of an answer in a crowd
_PASSERS = 4   # prompts at once that pass by
_TURNS = 3     # rings behind one and the same outside


def _tokens(engine: EngineUnderTest, lap: int) -> int:
    """Of an answer."""
    assert engine.spec.window is not None
    tokens = _WINDOWS * engine.spec.window + engine.edge
    if shortest_parted(engine.spec, lap) + tokens > engine.longest:
        unsupported(f"{engine.block_text}: a prompt of {shortest_parted(engine.spec, lap)} tokens and {_WINDOWS} "
                    f"windows and a block of answer do not fit into {engine.longest}")
    return tokens


def _text(engine: EngineUnderTest, prompt: Parted, tokens: int) -> str:
    return (f"{engine.block_text}, window {engine.spec.window} but in layers "
            f"{', '.join(map(str, engine.spec.full_layers))}; {len(prompt.prompt)} prompt tokens, a ring of "
            f"{len(prompt.ring.tokens)} told in the window and before it; greedy {tokens} tokens")


def _named(prompts: Sequence[Parted], tokens: int) -> list[Ask]:
    return [Ask(prompt, tokens, f"{'ABCDEFGH'[i % 8]}{i // 8 or ''}") for i, prompt in enumerate(prompts)]


@pytest.mark.requirement("http/mixed-windows-exact", case="cold")
def test_cold(engine: EngineUnderTest) -> None:
    """Rings of many tokens and of few, one at a time, then at once."""
    laps = (longest_parted(engine.spec), longest_parted(engine.spec) // 2, 3)
    tokens = _tokens(engine, laps[0])
    prompts = [draw_parted(engine.spec, engine.rng, lap)[0] for lap in laps]
    for prompt in prompts:
        engine.case = _text(engine, prompt, tokens)
        engine.ask(_named([prompt], tokens))
    engine.case += "; all three at once"
    engine.ask(_named(prompts, tokens))


@pytest.mark.requirement("http/mixed-windows-exact", case="behind-hit")
def test_behind_a_hit(engine: EngineUnderTest) -> None:
    """What stands before the window is cached first; then come rings behind it, one by one, and all at once."""
    engine.need("prefix_cache", "what stands before the window is to be in cached blocks")
    lap = longest_parted(engine.spec)
    tokens = _tokens(engine, lap)
    prompts = draw_parted(engine.spec, engine.rng, lap, _TURNS)
    engine.case = f"{_text(engine, prompts[0], tokens)}; what stands before the window is cached"
    engine.note = ask_from_cache(engine, prompts[0].shared, _named(prompts, tokens))


@pytest.mark.requirement("http/mixed-windows-exact", case="in-chunks")
def test_in_chunks(engine: EngineUnderTest) -> None:
    """Prompts as long as the engine and the profile have room for: most budgets cut them."""
    lap = longest_parted(engine.spec)
    tokens = _tokens(engine, lap)
    length = min(engine.longest - tokens, max(engine.profile.prompt_tokens, shortest_parted(engine.spec, lap)))
    prompts = [draw_parted(engine.spec, engine.rng, lap, length=length)[0] for _ in range(_TURNS)]
    engine.case = f"{_text(engine, prompts[0], tokens)}; {_TURNS} at once"
    engine.ask(_named(prompts, tokens))
    engine.note = f"prompts of {length} tokens"


@pytest.mark.requirement("http/mixed-windows-exact", case="crowd")
def test_in_a_crowd(engine: EngineUnderTest) -> None:
    """Several at once, while prompts pass by: they take what has left the windows, and must not take the rest."""
    assert engine.spec.window is not None
    lap = longest_parted(engine.spec) // 2
    room = engine.longest - shortest_parted(engine.spec, lap)
    tokens = min(room, _LONGEST * engine.spec.window)
    if tokens < engine.spec.window:
        unsupported(f"{engine.block_text}: a prompt and a window of answer do not fit into {engine.longest}")
    rings = [draw_parted(engine.spec, engine.rng, lap)[0] for _ in range(engine.profile.concurrency // 2)]
    engine.case = f"{_text(engine, rings[0], tokens)}; {len(rings)} at once, while as long prompts pass by"
    readers, passed = engine.start(_named(rings, tokens)), 0
    while not readers.done:
        passers = [draw_parted(engine.spec, engine.rng, lap)[0] for _ in range(_PASSERS)]
        engine.ask(_named(passers, 2))
        passed += sum(len(each.prompt) for each in passers)
    readers.verify()
    engine.note = not_overrun(engine, passed) or f"{passed} tokens passed by"
