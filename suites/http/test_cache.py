"""What a prefix cache must not change, and what it must tell: answers, positions, counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp

import pytest

from pabench.conformance.churn import churn, not_overrun
from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.prompts import (
    long_rings,
    rings_with_shared_prefix,
    second_turn,
    shared_by_all,
)
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask, is_certain
from pabench.engines.base import Completion, GenerationRequest
from pabench.probe import ProbeSpec, Ring, exact_logprob

# A fork's branches have probability 1/2 each, in bfloat16 between 0.3 and 0.7; a branch whose key is lost has none.
_FORKED = (0.1, 0.9)
_UNEXPECTED = 1.0     # nats that a token which nothing foretells is below one that is certain, and others apart
_TOSSES = 4           # a slot that is lost is told by chance, each time by one half
_HITS = 4             # requests of a batch that hit, beside as many that miss


@pytest.mark.requirement("http/cold-equals-warm")
@pytest.mark.parametrize("offset", [0, 5], ids=["whole-blocks", "partial-block"])
def test_cold_equals_warm(engine: EngineUnderTest, offset: int) -> None:
    """Cold, at once again, after others have come, and with one more block behind the cached ones.

    Prompts of every length that is a whole number of blocks are asked twice: nothing is left to compute of them.
    """
    block = engine.edge
    longest = (engine.longest - block - 3 * offset) // 3
    lengths = [k * block + offset for k in engine.profile.block_multiples if k * block + offset <= longest]
    if not lengths:
        unsupported(f"{engine.block_text}: a prompt of a block, read twice, does not fit into {engine.longest} tokens")
    for i, length in enumerate(lengths):
        (ring,) = engine.rings([length])[i % 2]
        again = Ask(ring, length, "A")
        for state, asks in (("cold", [again]), ("warm, two at once", [again, again])):
            engine.case = f"{engine.block_text}; one ring of {length} prompt tokens, {state}; greedy, one round"
            engine.ask(asks)
        longer = Ring(ring.tokens, ring.salt, length + block)
        engine.case = (f"{engine.block_text}; a prompt of {length} tokens, then one of {length + block} that begins "
                       "with it")
        engine.ask([Ask(longer, length, "A")])


@pytest.mark.requirement("http/cold-equals-warm", case="revisited")
def test_revisited_after_churn(engine: EngineUnderTest) -> None:
    """More prompts than the pool holds, then all again, in another order: what was evicted or moved away comes back."""
    block, capacity = engine.edge, engine.geometry.capacity_tokens
    length = min(4 * block, engine.longest // 3)
    fill = min(capacity or 0, engine.profile.pool_tokens) or 40 * block
    count = max(6, fill * 5 // 4 // length)
    rings: list[Ring] = []
    while len(rings) < count:
        rings += engine.rings([length] * engine.num_rings(count - len(rings), length))[0]
    tokens = min(block // 2, engine.longest // 3)
    asks = [Ask(ring, tokens, f"prompt {i}") for i, ring in enumerate(rings)]
    engine.case = (f"{engine.block_text}; {count} rings of {length} prompt tokens, then all again; greedy {tokens} "
                   "tokens")
    engine.ask(asks, concurrency=engine.profile.concurrency)
    passed = count * (length + tokens)
    if capacity is not None and passed < capacity:
        passed += churn(engine, capacity - passed)
    engine.ask([asks[i] for i in engine.rng.permutation(count)], concurrency=engine.profile.concurrency)
    if reason := not_overrun(engine, passed):
        unsupported(reason)
    engine.note = f"{passed} tokens through a pool of {capacity}"


@pytest.mark.requirement("http/cold-equals-warm", case="hits-beside-misses")
def test_hits_beside_misses(engine: EngineUnderTest) -> None:
    """Prompts that are cached and prompts that are not, in one batch: all wait while a long one is computed."""
    block = engine.edge
    length = min(2 * block + block // 2, engine.longest // 3, len(engine.spec.paired_ids) // (2 * _HITS))
    rings = engine.rings([length] * (2 * _HITS))[0]
    (long,) = long_rings(engine.spec, engine.rng, [min(engine.longest - 8, engine.profile.prompt_tokens // 2)], 4)
    known = [Ask(ring, length, f"hit {i}") for i, ring in enumerate(rings[:_HITS])]
    new = [Ask(ring, length, f"miss {i}") for i, ring in enumerate(rings[_HITS : 2 * _HITS])]
    engine.case = (f"{engine.block_text}; {_HITS} rings of {length} prompt tokens that are cached and {_HITS} that are "
                   f"not, behind a prompt of {len(long.prompt)} tokens; greedy, one round")
    engine.ask(known)
    engine.ask([Ask(long, 4, "long"), *(ask for pair in zip(known, new, strict=True) for ask in pair)])


@pytest.mark.requirement("http/cold-equals-warm", case="second-turn")
def test_second_turn(engine: EngineUnderTest) -> None:
    """A conversation: a prompt, its answer and new text, where the answer ends at a block edge, and one before it.

    The last token of an answer was never fed back: whoever takes it for computed leaves a hole. It shows where two
    tokens may follow, one of them behind the hole: both must be as likely as each other, and so they are told.
    """
    engine.need("logprobs", "whether both continuations are still likely")
    block = engine.edge
    blocks = min(3, (engine.longest // 2 - 2 * block) // block)
    if blocks < 2:
        unsupported(f"{engine.block_text}: two turns of a block each do not fit into {engine.longest} tokens")
    for behind in (0, 1):
        answer = block // 2 + 3
        first = engine.rings([blocks * block - behind - answer])[0][0]
        engine.case = (f"{engine.block_text}; a ring of {len(first.prompt)} prompt tokens, {answer} of answer, that is "
                       f"{blocks} blocks less {behind}, then {block // 2} new tokens; greedy")
        (told,) = engine.ask([Ask(first, answer, "turn 1", logprobs=True, stream=False)])
        if engine.is_probe:
            _check_all_certain(engine.spec, told)
        read = second_turn(engine.spec, engine.rng, first, answer, block // 2)
        engine.ask([Ask(read, len(first.tokens) - 1, "turn 2")])
        seam = second_turn(engine.spec, engine.rng, first, answer, block // 2, at_seam=True)
        (told,) = engine.ask([Ask(seam, 1, "turn 2", logprobs=True, stream=False)])
        if engine.is_probe:  # another model's next token is as likely as it is: `ask` has compared it
            _check_both_likely(told, len(first.prompt) + answer)


def _check_all_certain(spec: ProbeSpec, answer: Completion) -> None:
    """Else what is told of a fork may be told of any token."""
    logprobs = answer.choices[0].logprobs or []
    if not logprobs or not all(is_certain(spec, value) for value in logprobs):
        fail(f"log-probability {exact_logprob(spec):.2f} of each token of turn 1, which its ring demands",
             f"{min(logprobs, default='none')}")


def _check_both_likely(answer: Completion, seam: int) -> None:
    logprobs = answer.choices[0].logprobs
    if not logprobs:
        fail("the log-probability of turn 2[0]", "none")
    probability = exp(logprobs[0])
    if not _FORKED[0] < probability < _FORKED[1]:
        fail(f"probability 1/2 of each of two tokens that may follow (the second stands at position {seam})",
             f"probability {probability:.3f} of turn 2[0]",
             hint="the last token of the answer was taken for computed: its key is not there, so what stands behind it "
                  "is not found. Only what was fed to the model is cached")


@pytest.mark.requirement("http/two-laps-after-hit")
@pytest.mark.parametrize("offset", [0, 5], ids=["whole-blocks", "partial-block"])
def test_two_laps_after_hit(engine: EngineUnderTest, offset: int) -> None:
    """A prompt that was cached by a request of one token, then read round twice; once more with a braid.

    A key at a wrong position misleads only when its token is looked up again: in the second lap.
    """
    engine.need_cold("the prompt is cached when it is read")
    block = engine.edge
    blocks = min(2, (engine.longest - 3 * offset - 8) // (3 * block))
    if blocks < 1:
        unsupported(f"{engine.block_text}: a prompt of a block, read twice, does not fit into {engine.longest} tokens")
    length = blocks * block + offset
    (ring,) = engine.rings([length])[0]
    engine.case = f"{engine.block_text}; a ring of {length} prompt tokens, cached before; greedy, two rounds"
    engine.ask([Ask(ring, 1, "A, cold")])
    (warm,) = engine.ask([Ask(ring, 2 * length, "A")])
    if warm.usage is not None and warm.usage.cached_tokens == 0 and length > block:
        unsupported("the second request was no hit")
    braid = engine.braid(length, length, "A")
    engine.case = f"{engine.block_text}; a braid of {length} prompt tokens, cached before, {_TOSSES} times; two rounds"
    engine.ask([replace(braid, tokens=1, name="A, cold")])
    engine.ask([replace(braid, name=f"A, time {i}") for i in range(_TOSSES)])


@pytest.mark.requirement("http/cached-tokens-match-block-model")
def test_cached_tokens(engine: EngineUnderTest) -> None:
    """One at a time: a new prompt, the same again, and one that parts from it inside a block.

    What can be shared is the whole blocks before the first token that differs, and never the last token: that one
    must be computed, to know what follows it.
    """
    block = engine.edge
    lengths = [k * block + offset for k in engine.profile.block_multiples for offset in (-1, 0, 1)
               if block // 2 + 4 <= k * block + offset < engine.longest // 2 - block]
    if not lengths:
        unsupported(f"{engine.block_text}: no prompt of a block and another fit into {engine.longest} tokens")
    model = _BlockModel(engine.block_size, engine.reuses_partial_blocks, engine.num_pools > 1, engine.guesses)
    for length in lengths:
        shared, tail = length - block // 2 - 1, block // 2
        first, second = rings_with_shared_prefix(engine.spec, engine.rng, shared, tail, 2)
        for ring, common, what in ((first, 0, "a new prompt"), (first, len(first.prompt), "the same again"),
                                   (second, shared, f"one that shares {shared} tokens with it")):
            engine.case = f"{engine.block_text}; {what}, of {len(ring.prompt)} tokens; nothing else in the engine"
            (answer,) = engine.told([Ask(ring, 1, "A", stream=False)])
            _check_cached(model, answer, common, len(ring.prompt))
    engine.note = model.note


@dataclass(frozen=True, slots=True)
class _BlockModel:
    """What an engine with such a cache may find of what a prompt shares with an earlier one."""

    size: int | None     # of a block; None where it is not told
    partial: bool        # part of a block may be a hit too, and need not be one
    several_pools: bool  # the next request may be served from one that has not seen the first
    guesses: bool        # who speculates may compute the last block again: its drafts are made of hidden states

    @property
    def note(self) -> str:
        """What was not asked, for a verdict."""
        if self.several_pools:
            return "the engine has several pools, and does not say which it looked into: no count is too low"
        if self.partial:
            return "the engine reuses parts of blocks: any count from whole blocks to all that was shared is right"
        return "the engine speculates: a block less is right too" if self.guesses else ""

    def counts(self, shared: int) -> range:
        """The cached tokens that may be told where so many may be found."""
        assert self.size is not None
        whole = shared // self.size * self.size
        least = 0 if self.several_pools else max(0, whole - self.size * self.guesses)
        return range(least, shared + 1) if self.partial else range(least, whole + 1, self.size)


def _check_cached(model: _BlockModel, answer: Completion, common: int, length: int) -> None:
    """`common`: how many tokens at its beginning the prompt shares with what was sent before."""
    size, partial = model.size, model.partial
    told = answer.usage.cached_tokens if answer.usage is not None else None
    if told is None:
        told = 0  # engines leave the field out where there is nothing to tell
    most = min(common, length - 1)
    if size is None:
        if told > max(most, shared_by_all(1)):
            fail(f"at most {most} cached tokens: so many are shared, and the last is always computed", f"{told}")
        return
    counts = model.counts(most)
    if common == 0 and told <= shared_by_all(1 if partial else size):
        return
    if told not in counts:
        wanted = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 or partial else f"{counts[0]}"
        parts = ", or parts of them" if partial else ""
        fail(f"cached_tokens = {wanted}: {common} of {length} tokens were sent before, in whole blocks of "
             f"{size}{parts}, the last token left out", f"{told}",
             hint="more: a block is counted that was computed again, or that belongs to another prefix; less: a block "
                  "that is still there is not found")


@pytest.mark.requirement("http/prompt-logprobs-cold-equals-warm")
def test_prompt_logprobs(engine: EngineUnderTest) -> None:
    """Log-probabilities of a prompt that goes round twice, cold and when it is cached: whole, and equal.

    On the probe each token is certain in its second lap. In its first none is to be expected, and how unlikely each is
    was set when the probe was built: far apart, so that a list out of step shows.
    """
    block = engine.edge
    size = min(block + 3, engine.longest // 4)
    drawn = engine.rings([size])[0][0]
    ring = Ring(drawn.tokens, drawn.salt, 2 * len(drawn.tokens) + 3)
    length = len(ring.prompt)
    request = GenerationRequest(ring.prompt, 2, stream=False, prompt_logprobs=True)
    told = []
    for state in ("cold", "warm", "warm again"):
        engine.case = f"{engine.block_text}; log-probabilities of a prompt of {length} tokens, {state}"
        (answer,) = engine.generate([request])
        told.append(_prompt_logprobs(answer, length))
        if state == "cold":
            engine.told([Ask(ring, 2, "A")])  # without them: now it is surely cached
    certain = exact_logprob(engine.spec)
    for at in range(size, length) if engine.is_probe else ():
        if not is_certain(engine.spec, told[0][at]):
            fail(f"log-probability {certain:.2f} of token {at}, which the second lap demands", f"{told[0][at]}")
    if engine.is_probe:
        _check_unexpected(told[0][1:size], certain)
    for at, (cold, *warm) in enumerate(zip(*told, strict=True)):
        for value in warm:
            if (cold is None) != (value is None) or abs((cold or 0) - (value or 0)) > 0.5 + abs(cold or 0) / 50:
                fail(f"log-probability of prompt token {at}: {cold}, as it was cold", f"{value}",
                     hint="it was computed for the part behind the hit alone: do not read the cache for such a "
                          "request, or keep what it would have told")


def _check_unexpected(first_lap: list[float | None], certain: float) -> None:
    """No token of the first lap is certain, and they are not all as unlikely."""
    likely = [value for value in first_lap if value is None or value > certain - _UNEXPECTED]
    if likely or max(filter(None, first_lap)) - min(filter(None, first_lap)) < _UNEXPECTED:
        fail(f"log-probabilities of the first lap's tokens, which nothing foretells, below {certain - _UNEXPECTED:.1f} "
             "and far apart", f"{likely[0] if likely else first_lap[0]}" + (" of one" if likely else " of all, nearly"))


def _prompt_logprobs(answer: Completion, length: int) -> list[float | None]:
    if answer.error is not None:
        fail("log-probabilities of the prompt", f"HTTP {answer.status}: {answer.error[:200]}",
             hint="are there fewer log-probabilities than prompt tokens, since a part of it came from the cache?")
    told = answer.choices[0].prompt_logprobs if answer.choices else None
    if told is None or len(told) != length or told[0] is not None:
        got = "none" if told is None else f"{len(told)}, the first {told[0] if told else None}"
        fail(f"{length} log-probabilities, the first null: nothing comes before it", got)
    return told
