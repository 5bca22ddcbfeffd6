"""What is done to the cache: filled and asked from, or overrun by prompts until everything in it is taken anew."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.prompts import SHORTEST_RING, long_rings
from pabench.conformance.verify import Ask
from pabench.engines.base import GenerationRequest

CHURN_S = 5.0  # of a case: what takes longer is not begun


def churn(engine: EngineUnderTest, needed: int) -> int:
    """Compute new prompts of at least `needed` tokens, a token of answer each; how many there were.

    They are as long as the engine takes: computing a prompt is cheap beside decoding. Given up when they would
    take longer than `CHURN_S`, as the first, which is alone, tells.
    """
    length = min(engine.longest - 2, engine.profile.prompt_tokens)
    passed, count, start = 0, 1, time.monotonic()
    while passed < needed:
        rings = long_rings(engine.spec, engine.rng, [length] * count, SHORTEST_RING)
        engine.told([Ask(ring, 1, f"passer-by {i}") for i, ring in enumerate(rings)])
        passed += count * length
        if (time.monotonic() - start) * needed > CHURN_S * engine.profile.patience * passed:
            break
        count = min(engine.profile.concurrency, 2 * count, -(-(needed - passed) // length))
    return passed


def ask_from_cache(engine: EngineUnderTest, shared: tuple[int, ...], asks: Sequence[Ask]) -> str:
    """Ask what begins with `shared` once that is cached: one by one, then all at once. How much was found, in words."""
    engine.generate([GenerationRequest(shared, max_tokens=1, stream=False)])
    found = []
    for ask in asks:
        found += [answer.usage.cached_tokens for answer in engine.ask([ask])
                  if answer.usage and answer.usage.cached_tokens]
    engine.case += "; then all at once"
    engine.ask(asks[::-1])
    return f"{', '.join(map(str, found)) or 'it is not told how many'} tokens found in the cache"


def not_overrun(engine: EngineUnderTest, passed: int) -> str:
    """Why `passed` tokens have evicted nothing for sure; "" where they have: the pool holds no more."""
    capacity = engine.geometry.capacity_tokens
    if capacity is None:
        return f"the engine does not tell how many blocks it has: whether {passed} tokens evicted anything is not known"
    if passed < capacity:
        return (f"{passed} tokens passed through a pool of {capacity}, so that nothing had to be evicted: start the "
                "engine with fewer blocks to have this checked")
    return ""
