"""Blocks that several sequences share: through a prefix, or because they are samples or beams of one prompt."""

from __future__ import annotations

import math

import pytest

from pabench.conformance.engine import EngineUnderTest, refused
from pabench.conformance.failure import fail
from pabench.conformance.prompts import (
    braid_of_prompt_length,
    fork_of_prompt_length,
    rings_with_shared_prefix,
)
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask
from pabench.engines.base import Completion, GenerationRequest
from pabench.probe import Fork, Ring

# Samples of a fork are all alike by chance with probability 2^-(n-1): tried until that is below 2^-20.
_DOUBLINGS = 20
_CROWD = 12        # sequences behind one long prefix: engines treat so many apart
_PREFIX_BLOCKS = 5


@pytest.mark.requirement("http/same-block-behind-another-prefix")
def test_same_block_behind_another_prefix(engine: EngineUnderTest) -> None:
    """X+S and Y+S differ in their first block alone, salt and tokens. S must be read from behind its own.

    X+S is cached first, then Y without S, then with one block more of S each time: only so does a cache that forgets
    the parent, or the parent's, find S behind the wrong one.
    """
    engine.need_cache("no block is ever found again")
    engine.need_cold("X+S is cached when Y+S is asked for")
    block = engine.edge
    length = min(4 * block + 1, engine.longest // 2)
    if length <= 2 * block:
        unsupported(f"{engine.block_text}: X and S, a block each, do not fit into {engine.longest} tokens")
    ring, other = engine.rings([length, block + 1])[0]
    # Behind SEP and the salt, the first block holds all tokens of a ring of a block and one.
    behind_y = Ring(other.tokens + ring.tokens[len(other.tokens):], other.salt)
    engine.case = (f"{engine.block_text}; X+S of {length} tokens, then Y alone of {block + 1}, then Y and a block more "
                   "of S each time; greedy")
    engine.ask([Ask(ring, length, "X+S")])
    for end in range(block + 1, length, block):
        engine.generate([GenerationRequest(behind_y.prompt[:end], max_tokens=1, stream=False)])
    (answer,) = engine.ask([Ask(behind_y, length, "Y+S")])
    engine.need_hit(answer, "no block was found again, not even behind its own prefix")


@pytest.mark.requirement("http/shared-prefix-divergence", case="three")
def test_shared_prefix_divergence(engine: EngineUnderTest) -> None:
    """A prefix that ends inside a block, alone first, then continued by several at once, then once more with a new one.

    By then somebody's tail stands in the block that the prefix ended in: D must not find it there.
    """
    block = engine.edge
    shared, tail = 2 * block + 5, block
    if shared + tail > engine.longest // 3:
        shared, tail = block + 5, block // 2
    room = engine.longest - (shared + tail + 1)
    if room < shared + tail:
        unsupported(f"{engine.block_text}: a prompt of {shared + tail + 1} tokens, which ends in its second block, "
                    f"cannot be read whole within {engine.longest} tokens")
    rings = rings_with_shared_prefix(engine.spec, engine.rng, shared, tail, 4)
    tokens = min(len(rings[0].tokens) + block, room)
    asks = [Ask(ring, tokens, f"{'ABCD'[i]}") for i, ring in enumerate(rings)]
    engine.case = (f"{engine.block_text}; A, B, C and D share {shared} tokens; A, B and C at once, then D, C, B and A; "
                   f"greedy {tokens} tokens")
    engine.generate([GenerationRequest(rings[0].prompt[:shared], max_tokens=1, stream=False)])
    engine.ask(asks[:3])
    engine.ask(asks[::-1])


@pytest.mark.requirement("http/shared-prefix-divergence", case="crowd")
def test_crowd_behind_one_prefix(engine: EngineUnderTest) -> None:
    """A long prefix that a dozen sequences share: engines may compute their attention to it once for all."""
    block = engine.edge
    blocks = min(_PREFIX_BLOCKS, (engine.longest // 2 - block) // block)
    if blocks < 1:
        unsupported(f"{engine.block_text}: a prefix of a block and a tail cannot be read whole within "
                    f"{engine.longest} tokens")
    shared, tail = blocks * block, block // 2
    rings = rings_with_shared_prefix(engine.spec, engine.rng, shared, tail, _CROWD)
    tokens = len(rings[0].tokens)
    engine.case = (f"{engine.block_text}; one of {_CROWD} sequences alone, then all at once; they share {shared} "
                   f"tokens; greedy {tokens} tokens")
    asks = [Ask(ring, tokens, f"sequence {i}") for i, ring in enumerate(rings)]
    engine.ask(asks[:1])
    engine.ask(asks)


@pytest.mark.requirement("http/n-samples-isolated")
@pytest.mark.parametrize("offset", [0, 1, 5], ids=["full-block", "one-slot", "partial-block"])
def test_n_samples_isolated(engine: EngineUnderTest, offset: int) -> None:
    """Samples that part at a fork and meet it again: each must then choose as it did, and only its own slots know."""
    samples, length = engine.profile.samples, _fork_length(engine, offset)
    temperature, tried = engine.sampling_temperature, 0
    while tried * (samples - 1) < _DOUBLINGS:
        fork = fork_of_prompt_length(engine.spec, engine.rng, length)
        engine.case = (f"{engine.block_text}; a fork of {length} prompt tokens; n {samples}, {length} tokens, "
                       f"temperature {temperature:g}")
        ask, answer = engine.ask_samples(Ask(fork, length, "A", n=samples, temperature=temperature))
        samples, tried = ask.n, tried + 1
        if _differ(engine, fork, answer):
            engine.note = f"n {samples}"
            return
    if not engine.is_probe and _by_chance(answer) > 2.0**-_DOUBLINGS:
        unsupported(f"{samples} samples were alike in each of {tried} requests, as they may be: nothing is shown")
    what = "take both branches of a fork of probability 1/2 each" if engine.is_probe else "differ"
    fail(f"{samples} samples of one request {what}, in one of {tried} requests", "in each request all were alike",
         hint="is the temperature obeyed, and is each sample drawn for itself?")


def _fork_length(engine: EngineUnderTest, offset: int) -> int:
    """Prompt tokens of a fork that ends `offset` behind a block edge and can be read whole."""
    blocks = min(2, (engine.longest - 16) // (3 * engine.edge))
    if blocks < 1:
        unsupported(f"{engine.block_text}: samples of a prompt of a block do not fit into {engine.longest} tokens")
    return blocks * engine.edge + offset


def _branches(fork: Fork, answers: list[list[int]]) -> set[int | None]:
    return {fork.branch(ids) for ids in answers}


@pytest.mark.requirement("http/beam-isolated")
@pytest.mark.parametrize("offset", [0, 1, 5], ids=["full-block", "one-slot", "partial-block"])
def test_beam_isolated(engine: EngineUnderTest, offset: int) -> None:
    """Two beams: the two branches of a fork are equally likely and nothing else is, so each beam is one of them.

    Each goes its way past the fork again, where its own slots alone tell which branch is its own.
    """
    length = _fork_length(engine, offset)
    fork = fork_of_prompt_length(engine.spec, engine.rng, length)
    tokens = length - 5
    engine.case = f"{engine.block_text}; a fork of {length} prompt tokens; 2 beams, {tokens} tokens"
    ask = Ask(fork, tokens, "A", n=2, beam_width=2, stream=False)
    alone = engine.ask([ask])
    _check_both_branches(fork, [choice.token_ids or [] for choice in alone[0].choices])
    others = [fork_of_prompt_length(engine.spec, engine.rng, length) for _ in range(3)]
    engine.case = f"{engine.block_text}; 3 forks of {length} prompt tokens at once; 2 beams each, {tokens} tokens"
    crowd = [Ask(other, tokens, f"{'BCD'[i]}", n=2, beam_width=2, stream=False) for i, other in enumerate(others)]
    for each, answer in zip(others, engine.ask(crowd), strict=True):
        _check_both_branches(each, [choice.token_ids or [] for choice in answer.choices])


@pytest.mark.requirement("http/beam-isolated", case="on-the-way")
def test_beams_part_on_the_way(engine: EngineUnderTest) -> None:
    """Beams of a braid, which forks at each second token: most of them part behind the prompt, inside a block."""
    length = _fork_length(engine, 5)
    for width in (2, 4):
        braid = braid_of_prompt_length(engine.spec, engine.rng, length)
        tokens = min(length, 2 * engine.edge + 3)
        engine.case = f"{engine.block_text}; a braid of {length} prompt tokens; {width} beams, {tokens} tokens"
        ask = Ask(braid, tokens, "A", n=width, beam_width=width, stream=False)
        (answer,) = engine.start([ask]).wait()
        if width > 2 and refused(answer):
            engine.note = f"{width} beams are refused: HTTP {answer.status}"
            return
        engine.verify([ask], [answer])
        texts = {tuple(choice.token_ids or ()) for choice in answer.choices}
        if len(texts) != width:
            fail(f"{width} beams that differ", f"{len(texts)} different ones",
                 hint="does a beam overwrite the other's slots, or inherit its score?")


def _check_both_branches(fork: Fork, answers: list[list[int]]) -> None:
    found = _branches(fork, answers)
    if found != {0, 1}:
        fail("one beam on each branch of the fork: nothing else is as likely",
             f"both on branch {found.pop()}", hint="does a beam overwrite the other's slots, or inherit its score?")

def _by_chance(answer: Completion) -> float:
    """How probable it is that all samples are alike, by the first one's log-probabilities; 1 where none are told."""
    return math.exp(sum(answer.choices[0].logprobs or ()) * (len(answer.choices) - 1))


def _differ(engine: EngineUnderTest, fork: Fork, answer: Completion) -> bool:
    """Whether the samples took both branches of the fork; of another model, whether they are different texts."""
    if engine.is_probe:
        return len({fork.branch(choice.token_ids or []) for choice in answer.choices}) == 2
    return len({choice.text for choice in answer.choices}) > 1
