"""The probe with a sliding window: all that is in it is read, and nothing that has left it.

Blocks leave the window while answers are made, and go to others. An answer that is long enough reads each slot of its
blocks at the window's far edge, the last time before its block goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pabench.conformance.churn import ask_from_cache, not_overrun
from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.prompts import RING_OVERHEAD
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask, is_certain
from pabench.engines.base import Completion
from pabench.probe import (
    Decoyed,
    ProbePrompt,
    Ring,
    complement,
    draw_at_the_edge,
    draw_decoyed,
    draw_rings,
    shortest_decoyed,
)

_WINDOWS = 2   # an answer goes over so many, so that blocks leave
_LONGEST = 4   # windows of an answer in a crowd
_PASSERS, _PASSERS_LAP = 4, 8  # prompts at once that pass by, and their tokens: so few that any block holds a lap
_TURNS = 3     # rings behind one and the same decoys


def _window(engine: EngineUnderTest) -> int:
    assert engine.spec.window is not None, "the requirement needs one"
    return engine.spec.window


def _named(prompts: Sequence[ProbePrompt], tokens: int) -> list[Ask]:
    return [Ask(prompt, tokens, "ABCDEFGH"[i]) for i, prompt in enumerate(prompts)]


def _far_ring(engine: EngineUnderTest, lap: int, length: int) -> Ring:
    """A ring that comes round after `lap` tokens, in a prompt of `length`."""
    return replace(draw_rings(engine.spec, engine.rng, [lap])[0], prompt_len=length)


@pytest.mark.requirement("http/sliding-window-exact")
@pytest.mark.parametrize("offset", [-1, 0, 1], ids=["kB-1", "kB", "kB+1"])
def test_far_edge(engine: EngineUnderTest, offset: int) -> None:
    """Rings of W and W - 1 tokens, one at a time: each token is read from the first position of the window, or the
    second. The window of a prompt's end begins one before, at and one behind a block edge.
    """
    window, block = _window(engine), engine.edge
    length = window + max(block, RING_OVERHEAD + 1) + offset
    tokens = _WINDOWS * window + block
    if length + tokens > engine.longest:
        unsupported(f"{engine.block_text}: a prompt of {length} tokens and {_WINDOWS} windows and a block of answer do "
                    f"not fit into {engine.longest}")
    for lap in (window, window - 1):
        engine.case = (f"{engine.block_text}, window {window}; a ring of {lap} tokens, {length} prompt tokens; greedy "
                       f"{tokens} tokens")
        engine.ask([Ask(_far_ring(engine, lap, length), tokens, "A")])


@pytest.mark.requirement("http/sliding-window-exact", case="crowd")
def test_far_edge_in_a_crowd(engine: EngineUnderTest) -> None:
    """The same of several at once, while prompts pass by and take what has left their windows."""
    window, block = _window(engine), engine.edge
    room = engine.longest - window - block - RING_OVERHEAD
    if room < _WINDOWS * window:
        unsupported(f"{engine.block_text}: a ring of {window} tokens and {_WINDOWS} windows behind it do not fit into "
                    f"{engine.longest}")
    count = engine.num_rings(engine.profile.concurrency // 2, 2 * window)
    tokens = min(room, _LONGEST * window)
    laps = [window - i % 2 for i in range(count)]
    rings = [replace(ring, prompt_len=window + RING_OVERHEAD + int(engine.rng.integers(block)))
             for ring in draw_rings(engine.spec, engine.rng, laps)]
    passed = 0
    for crowd in (rings, [complement(ring, engine.spec) for ring in rings]):
        engine.case = (f"{engine.block_text}, window {window}; {count} rings of about {window} tokens at once, greedy "
                       f"{tokens} tokens, while prompts of {2 * block} tokens pass by")
        readers = engine.start([Ask(ring, tokens, f"reader {i}") for i, ring in enumerate(crowd)])
        while not readers.done:
            passers = [replace(ring, prompt_len=2 * block) for ring in
                       draw_rings(engine.spec, engine.rng, [_PASSERS_LAP] * _PASSERS)]
            engine.ask([Ask(ring, 2, f"passer-by {i}") for i, ring in enumerate(passers)])
            passed += 2 * block * _PASSERS
        readers.verify()
    engine.note = not_overrun(engine, passed) or f"{passed} tokens passed by"


def _decoys(engine: EngineUnderTest, tokens: int) -> int:
    """Of how many tokens there can be decoys where answers have `tokens`."""
    room = engine.longest - tokens - shortest_decoyed(engine.spec, 0)
    each = shortest_decoyed(engine.spec, 1) - shortest_decoyed(engine.spec, 0)
    if room < _TURNS * each:
        unsupported(f"{engine.block_text}: no decoys of {_TURNS} tokens fit in front of a window of "
                    f"{_window(engine)} and {tokens} tokens of answer within {engine.longest}")
    return min(_window(engine) - 1, room // each)


def _decoy_text(engine: EngineUnderTest, prompt: Decoyed, decoys: int, tokens: int) -> str:
    return (f"{engine.block_text}, window {_window(engine)}; {len(prompt.prompt)} prompt tokens, before the last "
            f"{_window(engine)} of them decoys of {decoys} tokens; greedy {tokens} tokens")


@pytest.mark.requirement("http/sliding-window-exact", case="decoys-cold")
def test_decoys_cold(engine: EngineUnderTest) -> None:
    """Decoys before the window, more of them than what stands in it: alone, then at once, while others decode."""
    tokens = _window(engine) + engine.edge
    decoys = _decoys(engine, tokens)
    prompts = [draw_decoyed(engine.spec, engine.rng, decoys)[0] for _ in range(1 + _TURNS)]
    engine.case = _decoy_text(engine, prompts[0], decoys, tokens)
    engine.ask(_named(prompts[:1], tokens))
    engine.case += f"; {_TURNS} at once"
    engine.ask(_named(prompts[1:], tokens))


@pytest.mark.requirement("http/sliding-window-exact", case="decoys-behind-hit")
def test_decoys_behind_a_hit(engine: EngineUnderTest) -> None:
    """The decoys are cached first; then come rings behind them, one by one, and all at once from the cache."""
    engine.need("prefix_cache", "decoys are to stand in cached blocks")
    tokens = _window(engine) + engine.edge
    decoys = _decoys(engine, tokens)
    prompts = draw_decoyed(engine.spec, engine.rng, decoys, _TURNS)
    engine.case = f"{_decoy_text(engine, prompts[0], decoys, tokens)}; those before are cached"
    engine.note = ask_from_cache(engine, prompts[0].shared, _named(prompts, tokens))


@pytest.mark.requirement("http/sliding-window-exact", case="decoys-in-chunks")
def test_decoys_in_chunks(engine: EngineUnderTest) -> None:
    """Prompts as long as the engine and the profile have room for, nearly all of them decoys: most budgets cut them."""
    tokens = _window(engine)
    decoys = _decoys(engine, tokens)
    length = min(engine.longest - tokens, max(engine.profile.prompt_tokens, shortest_decoyed(engine.spec, decoys)))
    prompts = [draw_decoyed(engine.spec, engine.rng, decoys, length=length)[0] for _ in range(_TURNS)]
    engine.case = f"{_decoy_text(engine, prompts[0], decoys, tokens)}; {_TURNS} at once"
    engine.ask(_named(prompts, tokens))
    engine.note = f"prompts of {len(prompts[0].prompt)} tokens"


@pytest.mark.requirement("http/sliding-window-exact", case="one-too-far")
def test_one_too_far(engine: EngineUnderTest) -> None:
    """One decoy, at the first position that must not be seen, for the prompt's end and for every second answer behind
    it: seen, it ties with the ring, and probabilities alone tell.
    """
    engine.need("logprobs", "a position too many only makes a token uncertain")
    window, block = _window(engine), engine.edge
    tokens = window // 2
    for lead in range(block, block + 3):
        if window + lead + 4 + tokens > engine.longest:
            unsupported(f"{engine.block_text}: two windows and a block do not fit into {engine.longest}")
        prompt = draw_at_the_edge(engine.spec, engine.rng, lead)
        engine.case = (f"{engine.block_text}, window {window}; {len(prompt.prompt)} prompt tokens, a decoy {window} "
                       f"positions before every second answer; greedy {tokens} tokens")
        (answer,) = engine.ask([Ask(prompt, tokens, "A", logprobs=True, stream=False)])
        _check_certain(engine, answer)


def _check_certain(engine: EngineUnderTest, answer: Completion) -> None:
    """Fail at the first token whose probability says that another was as good."""
    for at, logprob in enumerate(answer.choices[0].logprobs or ()):
        if not is_certain(engine.spec, logprob):
            fail(f"A[{at}] has probability 1", f"log-probability {logprob:.3f}",
                 reads="all tokens are right",
                 hint="the position that has just left the window is seen too: a row at p sees [p - W + 1, p]")
