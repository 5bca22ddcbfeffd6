"""A block that two sequences share, of which the first ends while the second has still to read it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from pabench.conformance.churn import CHURN_S, not_overrun
from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.exchange import Exchange
from pabench.conformance.prompts import HEADER_TOKENS, SHORTEST_RING, long_rings, rings_with_shared_prefix
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask
from pabench.engines.base import GenerationRequest

_PASSING = 32  # prompts that a large pool is overrun with
_READERS = 4   # one behind the other, each with twice as long to read, until the pool is overrun in time
_BLOCKS = 6    # that the first of them shares


@dataclass(frozen=True, slots=True)
class _Plan:
    """Sizes in tokens. B reads the shared prefix once, from its start: its last whole block as late as can be.

    Once only, since a token that B has said itself stands twice in its cache, and hides that the first is gone.
    """

    shared: int
    tail: int
    held: int           # that A says
    passing: list[int]  # prompts that pass by
    are_rings: bool     # these are so short that no token comes twice before they close

    @property
    def read(self) -> int:
        """Tokens that B says."""
        return self.shared - HEADER_TOKENS + self.tail

    def before_last(self, block: int) -> int:
        """Tokens that B says before it reads the last whole block of the prefix."""
        return (self.shared // block - 1) * block - HEADER_TOKENS - 1


@pytest.mark.requirement("http/shared-block-outlives-first-holder")
def test_shared_block_outlives_first_holder(engine: EngineUnderTest) -> None:
    """A prefix is cached, A and B take it at once, A ends, others churn the pool, and B comes to its last block."""
    engine.need_cache("nothing is shared")
    engine.need_cold("the prefix is cached when it is taken")
    block, start = engine.edge, time.monotonic()
    blocks, most = _BLOCKS, _most_blocks(engine)
    for _ in range(_READERS):
        plan = _planned(engine, min(blocks, most))
        engine.case = (f"{engine.block_text}; A and B share {plan.shared} tokens; A ends first, B reads them all while "
                       f"{len(plan.passing)} prompts of {plan.passing[0]} tokens pass by")
        holder, reader, passers = _ask_all(engine, plan)
        engine.need_hit(reader.completion, "nothing was shared: B found no block of the prefix in the cache")
        passed, reason = _passed(plan, block, holder, reader, passers)
        reason = reason or not_overrun(engine, passed)
        # On a busy machine this process may come too late to overrun the pool: a longer prefix gives it time.
        if not reason or engine.geometry.capacity_tokens is None or time.monotonic() - start > CHURN_S:
            break
        blocks *= 2
    if reason:
        unsupported(f"before B came to the last block that it shares, {reason}")
    engine.note = f"{passed} tokens of churn, a pool of {engine.geometry.capacity_tokens} slots"


def _most_blocks(engine: EngineUnderTest) -> int:
    """Blocks of a prefix that B can read whole. Skips the test, as UNSUPPORTED, where these are less than two."""
    block, tail = engine.edge, engine.edge // 2
    tokens = min(len(engine.spec.paired_ids) - 2 * tail, (engine.longest - 2 * tail - 1) // 2)
    most = (tokens - block // 2) // block
    if most < 2:
        unsupported(f"{engine.block_text}: a prefix of more than two blocks cannot be read again within "
                    f"{engine.longest} tokens")
    return most


def _planned(engine: EngineUnderTest, blocks: int) -> _Plan:
    block = engine.edge
    shared = blocks * block + block // 2
    needed = engine.geometry.capacity_tokens or 40 * block
    short = min(5 * block, engine.longest - 2, len(engine.spec.paired_ids) // 4)
    # Of a large pool no more than this passes while B reads, and longer prompts pass sooner.
    length = max(short, min(needed // _PASSING, engine.longest - 2, engine.profile.prompt_tokens))
    count = max(4, -(-needed // length))
    held = max(block, block * blocks // _BLOCKS)  # a longer while too: B may be late on a busy machine
    return _Plan(shared, block // 2, held, [length] * count, length == short)


def _ask_all(engine: EngineUnderTest, plan: _Plan) -> tuple[Exchange, Exchange, list[Exchange]]:
    """A, B and who passed by; every token of theirs is verified."""
    first, second = rings_with_shared_prefix(engine.spec, engine.rng, plan.shared, plan.tail, 2)
    engine.generate([GenerationRequest(first.prompt[:plan.shared], max_tokens=1, stream=False)])
    holder = engine.start([Ask(first, plan.held, "A")])
    reader = engine.start([Ask(second, plan.read, "B")])
    holder.verify()
    passers: list[Exchange] = []
    start = time.monotonic()
    while len(passers) < len(plan.passing) and not reader.done and (
            time.monotonic() - start < CHURN_S * engine.profile.patience):
        lengths = plan.passing[len(passers):len(passers) + 4]
        rings = (engine.rings(lengths)[0] if plan.are_rings else
                 long_rings(engine.spec, engine.rng, lengths, SHORTEST_RING))
        pending = engine.start_told([Ask(ring, 2, f"passer-by {i}") for i, ring in enumerate(rings)])
        pending.verify()
        passers += pending.exchanges
    reader.verify()
    # Once more from the cache: what the first reader left must be whole too.
    engine.ask([Ask(second, plan.read, "B again")])
    return holder.exchanges[0], reader.exchanges[0], passers


def _passed(
    plan: _Plan, block: int, holder: Exchange, reader: Exchange, passers: list[Exchange]
) -> tuple[int, str]:
    """Tokens of the prompts that had passed when B came to its last shared block, or why that is not known."""
    answer = reader.completion
    times = answer.choices[0].token_times_s if answer and answer.choices else []
    before = plan.before_last(block)
    if len({*times}) < 2 or len(times) <= before:
        return 0, "it is not known what passed: B's answer did not come token by token"
    if holder.end_s is None or times[0] > holder.end_s:
        return 0, "A had ended, for B had not begun: it was not shared"
    return plan.passing[0] * sum(one.end_s is not None and one.end_s <= times[before] for one in passers), ""
