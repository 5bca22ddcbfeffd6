"""Requests that are kept apart by a salt share no cached block: no count and no time tells of others."""

from __future__ import annotations

from statistics import median

import pytest

from pabench.conformance.described import ASSUMED_BLOCK_SIZE
from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.prompts import shared_by_all
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask
from pabench.engines.base import Completion, GenerationRequest
from pabench.probe import Ring

_TIMED_PROMPT = 512    # tokens: long enough that computing them takes longer than a step
_PAIRS = 30            # of a first-token time with and without somebody else's prefix in the cache
_TELLING_P = 0.001     # what happens by chance once in a thousand runs
_TELLING_SHARE = 0.25  # of what a hit saves: less could be anything
_ENOUGH_PAIRS = 10     # where a hit of one's own is told by then, and nothing is seen of another's: no need to go on
_SILENT_P = 0.1
_COUNTED = "whether another's blocks were found is told by a count, or by times alone"


@pytest.mark.requirement("http/salt-isolates", case="counts")
def test_salt_isolates(engine: EngineUnderTest) -> None:
    """One prompt with salt a, again with a, with salt b, and without: the second is a hit, the last two are none.

    On each endpoint and way of answering, since each builds its request for itself.
    """
    engine.need("cached_tokens", _COUNTED)
    length = min(3 * engine.edge + 1, engine.longest // 2)
    if length <= engine.edge:
        unsupported(f"{engine.block_text}: no prompt of more than a block fits into {engine.longest} tokens twice")
    tokens = min(engine.edge // 2, engine.longest - length)
    ways = [(chat, stream) for chat in ((False, True) if engine.can("chat") else (False,)) for stream in (True, False)]
    for chat, stream in ways:
        ring = engine.rings([length])[0][0]
        way = f"{'a chat' if chat else 'a completion'}, {'streamed' if stream else 'whole'}"
        mark = f"{int(engine.rng.integers(2**62)):x}"
        for salt, hit in (("a", False), ("a", True), ("b", False), ("", False)):
            engine.case = (f"{engine.block_text}; {way}: {length} prompt tokens with salt a, a, b and none; now "
                           f"{'salt ' + salt if salt else 'none'}")
            ask = Ask(ring, tokens, f"salt {salt or 'none'}", stream=stream, chat=chat,
                      cache_salt=f"{salt}-{mark}" if salt else None)
            # A chat's template makes another prompt of it: without the probe, no answer to hold it against.
            (answer,) = engine.told([ask]) if chat else engine.ask([ask])
            _check_hit(engine, answer, hit, way)
    engine.note = f"{len(ways)} ways of asking"


@pytest.mark.requirement("http/salt-isolates", case="behind-own-block")
def test_salt_isolates_behind_own_block(engine: EngineUnderTest) -> None:
    """Spy knows how victim's prompt begins and sends a block of it, then all: behind its own block it finds nothing.

    Whoever keeps salts out of a key's chain finds the first block of a prompt under its own salt alone, and those
    behind it under any: only who has a first block of its own gets there.
    """
    engine.need("cached_tokens", _COUNTED)
    block = engine.edge
    length = min(4 * block + 1, engine.longest - 8)
    if length < 2 * block + 1:
        unsupported(f"{engine.block_text}: no prompt of two blocks fits into {engine.longest} tokens")
    ring = engine.rings([length])[0][0]
    mark = f"{int(engine.rng.integers(2**62)):x}"
    engine.case = (f"{engine.block_text}; {length} prompt tokens under salt victim; the first {block + 1} of them "
                   "under salt spy, then all of them")
    engine.ask([Ask(ring, 1, "victim", cache_salt=f"victim-{mark}")])
    (first,) = engine.generate([GenerationRequest(ring.prompt[: block + 1], 1, stream=False, cache_salt=f"spy-{mark}")])
    (answer,) = engine.ask([Ask(ring, 1, "spy", stream=False, cache_salt=f"spy-{mark}")])
    sent = (first.usage.prompt_tokens if first.usage is not None else None) or block + 1
    cached = answer.usage.cached_tokens if answer.usage is not None else None
    if (cached or 0) > sent:
        fail(f"at most {sent} cached tokens: so many were sent under salt spy",
             f"{cached}: blocks behind them were found, which victim alone has sent",
             hint="the salt is in the key of the first block, and not in what the next block's key builds on")


def _check_hit(engine: EngineUnderTest, answer: Completion, hit: bool, way: str) -> None:
    cached = answer.usage.cached_tokens if answer.usage is not None else None
    if hit and not cached:
        fail("cached_tokens above 0 under the salt that was used before", f"{cached}",
             hint="is the salt made anew for each request?")
    if not hit and (cached or 0) > shared_by_all(engine.block_size or ASSUMED_BLOCK_SIZE):
        fail("cached_tokens = 0: nobody has sent this prompt under this salt", f"{cached}",
             hint=f"the salt does not reach the cache on this way ({way}): another tenant's prompt shows")


@pytest.mark.requirement("http/salt-isolates", case="times")
def test_salt_hides_in_time(engine: EngineUnderTest) -> None:
    """The time to the first token of a prompt that another tenant has sent, against one that nobody has.

    First it is shown that a hit under one's own salt can be told by the clock at all: if not, nothing is claimed.
    """
    if engine.profile.name == "smoke":
        unsupported("profile smoke takes no times: ask with --profile ci")
    length = min(engine.longest - 8, _TIMED_PROMPT, len(engine.spec.paired_ids) // 2)
    engine.case = (f"{engine.block_text}; {_PAIRS} prompts of {length} tokens under salt victim, then each under salt "
                   f"spy, and {_PAIRS} that nobody sent (fewer, where that tells); times to the "
                   "first token, one at a time")
    own_hits, hits, misses = [], [], []
    for i in range(_PAIRS):
        if engine.time_left_s < engine.profile.case_timeout_s / 2:
            unsupported(f"{i} of {_PAIRS} pairs in half of the {engine.profile.case_timeout_s:g} s of a case: too slow")
        sent, fresh = engine.rings([length, length])[0]
        mark = f"{int(engine.rng.integers(2**62)):x}"
        _first_token_s(engine, sent, f"victim-{mark}")
        # In turns, so that a machine that slows down slows all alike.
        order = (0, 1) if i % 2 else (1, 0)
        for each in order:
            (hits if each else misses).append(_first_token_s(engine, (fresh, sent)[each], f"spy-{mark}"))
        own_hits.append(_first_token_s(engine, sent, f"victim-{mark}"))
        if i + 1 >= _ENOUGH_PAIRS and _silent(own_hits, hits, misses):
            break
    saved_s = median(misses) - median(own_hits)
    if _rank_p(own_hits, misses) > _TELLING_P or saved_s <= 0:
        unsupported("a hit under one's own salt takes as long as a miss here: times can tell nothing")
    seen_s, p = median(misses) - median(hits), _rank_p(hits, misses)
    engine.note = f"a hit saves {saved_s * 1e3:.1f} ms, another tenant's {seen_s * 1e3:.1f} ms (p = {p:.2g})"
    if p < _TELLING_P and seen_s > _TELLING_SHARE * saved_s:
        fail(f"prompts that another tenant has sent take as long as new ones: {median(misses) * 1e3:.1f} ms",
             f"{median(hits) * 1e3:.1f} ms, of {saved_s * 1e3:.1f} ms that a hit saves (p = {p:.2g})",
             hint="the cache is shared across salts: whoever guesses a prefix can tell that somebody sent it")


def _rank_p(one: list[float], other: list[float]) -> float:
    """How probable it is that times of one distribution differ so much in rank: Mann and Whitney's test, two-sided.

    By its normal approximation, which allows for ties; sound from about ten times a side on.
    """
    from scipy.stats import mannwhitneyu  # here: it takes long to import

    return float(mannwhitneyu(one, other, method="asymptotic").pvalue)


def _silent(own_hits: list[float], hits: list[float], misses: list[float]) -> bool:
    """Whether a hit of one's own shows in the times, and another's does not at all."""
    saved_s, seen_s = median(misses) - median(own_hits), median(misses) - median(hits)
    return (_rank_p(own_hits, misses) < _TELLING_P and _rank_p(hits, misses) > _SILENT_P
            and seen_s < _TELLING_SHARE * saved_s)


def _first_token_s(engine: EngineUnderTest, ring: Ring, salt: str) -> float:
    (answer,) = engine.told([Ask(ring, 1, "A", cache_salt=salt)])
    exchange = engine.exchanges[-1]
    if exchange.sent_s is None or not answer.choices[0].token_times_s:
        fail("a token that comes in a stream", "none")
    return answer.choices[0].token_times_s[0] - exchange.sent_s
