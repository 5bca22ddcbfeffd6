"""Clients that leave: what they asked for ends, its memory is free at once, and nobody else notices."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace

import pytest

from pabench.conformance.engine import EngineUnderTest, refused
from pabench.conformance.failure import fail
from pabench.conformance.gauges import all_given_back, given_back, idle_baseline, settled, state
from pabench.conformance.prompts import long_rings
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask
from pabench.engines.base import GenerationRequest
from pabench.probe import Ring

_BEFORE_ABORT = (8, 64, 256)  # tokens of each sample
_SHORTEST_ABORTED = 8         # tokens
_TELLING_S = 0.3  # a request that has less left to do than this might just have ended
_LONGEST_STAY_S = 0.25        # of a client that leaves while prompts are computed
_LONG_PROMPT = 512            # tokens: takes an engine several steps
_WHOLE_S = 2.5                # that all prompts together may take: more of them than this has time for show no more
_FEWEST = 4                   # prompts all the same
# Who is aborted leaves room for the next, so the last would be served before its client leaves at full pace.
_PACES = (0.25, 0.5, 0.75, 1.0)
_LEAVING = (1, 2, 0, 1, 2, 0)  # tokens that come before a client leaves
_HELD = "blocks of an aborted request were not given back, or it still runs"


@pytest.mark.requirement("http/abort-frees")
@pytest.mark.parametrize("n", [1, 4], ids=["one-sample", "four-samples"])
def test_abort_frees(engine: EngineUnderTest, n: int) -> None:
    """A long request whose client leaves after its first tokens: gone long before it would have ended."""
    engine.need("running_metrics", "whether a request still runs shows in the gauges alone")
    engine.need_lengths()
    if n > 1:
        engine.need("n", "several samples")
    baseline = idle_baseline(engine)
    prompt = engine.plain_prompt(engine.edge + 3)
    share = (engine.geometry.capacity_tokens or engine.longest) // n  # so that nothing has to be preempted
    tokens = min(engine.longest, share) - engine.edge - 8
    if tokens < _SHORTEST_ABORTED:
        unsupported(f"{engine.block_text}: no room for an answer long enough to be aborted")
    engine.case = f"n {n}, max_tokens {tokens}; the client disconnects after its first tokens"
    left_s = _start_and_abort(engine, GenerationRequest(prompt, tokens, n=n, temperature=1.0 if n > 1 else 0.0))
    if left_s < _TELLING_S:
        unsupported(f"the longest sequence that fits ends within {left_s:.2f} s: too soon to tell an abort from an end")
    reach_s = engine.disconnect_s + engine.cadence_s
    # With less time left than this a sound engine's gauges may not show the end before the request would have ended.
    telling = left_s >= 2 * reach_s
    within_s = min(engine.settle_s, reach_s + (left_s - reach_s) / 3 if telling else left_s / 2)
    start = time.monotonic()
    sample = settled(engine, baseline, within_s)
    if not telling and (sample is None or not given_back(sample, baseline)):
        unsupported(f"the longest sequence that fits ends within {left_s:.1f} s, and this engine may take "
                    f"{reach_s:g} s to notice that a client has left and to show it: too soon to tell an abort from an "
                    "end")
    if sample is None or not given_back(sample, baseline):
        fail(f"idle again within {within_s:.1f} s: {state(baseline)}", state(sample),
             hint="the request runs on without a reader: does the disconnect reach all of its samples, and are the "
                  "blocks of an aborted sequence freed?")
    engine.note = f"free after {time.monotonic() - start:.2f} s, would have run {left_s:.1f} s more"


def _start_and_abort(engine: EngineUnderTest, request: GenerationRequest) -> float:
    """Seconds that the aborted request would have gone on, at the pace of the tokens that came.

    A busy engine may send many tokens in one piece, which shows no pace, or one too fast: then once more, and later.
    """
    left_s = 0.0
    for after in _BEFORE_ABORT:
        answer = engine.abort(request, min(after, request.max_tokens // 4) * request.n)
        while request.n > 1 and refused(answer):
            request = replace(request, n=engine.fewer_samples(request.n, answer))
            answer = engine.abort(request, min(after, request.max_tokens // 4) * request.n)
        if answer.error is not None:
            fail("the request is served", f"HTTP {answer.status}: {answer.error[:200]}")
        times = [choice.token_times_s for choice in answer.choices if len(choice.token_times_s) > 1]
        received = max(map(len, times), default=0)
        gaps = [later - earlier for each in times for earlier, later in itertools.pairwise(each)]
        # The median, since a stall would make the rest look longer than it is; the mean where tokens come in pieces.
        pace_s = (statistics.median(gaps) or statistics.mean(gaps)) if gaps else 0.0
        left_s = max(left_s, pace_s * (request.max_tokens - received))
        if left_s >= _TELLING_S:
            break
    if left_s == 0:
        unsupported("all tokens come at once, so that nobody can tell when a request would have ended")
    return left_s


@pytest.mark.requirement("http/abort-frees", case="bystanders")
def test_abort_leaves_others_alone(engine: EngineUnderTest) -> None:
    """Several run, clients of some leave: the answers of the others are whole and right.

    Each ring is read once, for as long as it lasts: what was said before stands twice, and hides what is lost.
    """
    length = min(4 * engine.edge + 5, engine.longest // 2, len(engine.spec.paired_ids) // 5)
    rings = engine.rings([length] * 5)[0]
    engine.case = (f"4 rings of {length} prompt tokens at once; greedy {length} tokens; {len(_LEAVING)} other clients "
                   "disconnect meanwhile")
    with all_given_back(engine, _HELD):
        pending = engine.start([Ask(ring, length, f"bystander {i}") for i, ring in enumerate(rings[:4])])
        for after in _LEAVING:
            engine.abort(GenerationRequest(rings[4].prompt, length), after)
        pending.verify()
    if not engine.can("running_metrics"):
        unsupported("the answers of those who stayed are right; whether the others' memory was freed shows in the "
                    "gauges alone")


@pytest.mark.requirement("http/abort-storm-exact")
def test_abort_storm(engine: EngineUnderTest) -> None:
    """Most clients leave, each at another moment, and come again; those who stay get whole and right answers, to
    braids, which read what they generated meanwhile.

    The prompts of those who left are asked again in the end: what they left behind in the cache must be right.
    """
    profile, block = engine.profile, engine.edge
    length, tokens = min(2 * block + 5, engine.longest // 4), min(4 * block, engine.longest // 2)
    leaving, rounds = engine.num_rings(2 * profile.concurrency, 2 * length), -(-profile.rounds // 2)
    rings = engine.rings([length] * leaving)[0]
    gone = [GenerationRequest(ring.prompt, tokens) for ring in rings]
    engine.case = (f"{engine.block_text}; 4 braids, again and again, while {leaving} others are aborted at once at any "
                   f"moment, {rounds} times; {length} prompt tokens, {tokens} tokens")
    with all_given_back(engine, _HELD):
        for _ in range(rounds):
            staying = engine.start([engine.braid(length, tokens, f"staying {i}") for i in range(4)])
            engine.abort_all(gone, [float(delay_s) for delay_s in engine.rng.uniform(0, _LONGEST_STAY_S, leaving)])
            staying.verify()
    engine.ask([Ask(ring, length, f"aborted before {i}") for i, ring in enumerate(rings)],
               concurrency=profile.concurrency)


@pytest.mark.requirement("http/abort-in-prefill")
def test_abort_in_prefill(engine: EngineUnderTest) -> None:
    """Clients of long prompts leave before their first token; then the same prompts are asked, and read.

    Their blocks may be in the prefix cache: only those that were computed may be found there. How long the engine
    takes for so many prompts is measured first, with others, so that clients leave all along it, at several paces.
    """
    engine.need_cold("what they left behind is asked for warm")
    profile, block = engine.profile, engine.edge
    length = min(max(8 * block, min(profile.prompt_tokens // 2, _LONG_PROMPT)), engine.longest - 2 * block)
    if length < 3 * block:
        unsupported(f"{engine.block_text}: no prompt of several blocks fits into {engine.longest} tokens")
    read = min(2 * block + 3, length // 2)
    # So few that all stay in the cache until they are asked again.
    room = (engine.geometry.capacity_tokens or profile.pool_tokens) // 2 // length
    count = max(2, min(profile.concurrency, room, len(engine.spec.paired_ids) // (2 * read)))
    one_s = _seconds_for(engine, long_rings(engine.spec, engine.rng, [length], read))
    count = min(count, max(_FEWEST, int(_WHOLE_S / one_s)))
    whole_s = min(_seconds_for(engine, long_rings(engine.spec, engine.rng, [length] * count, read)) for _ in range(2))
    engine.case = (f"{engine.block_text}; {count} prompts of {length} tokens at once, all aborted within the "
                   f"{whole_s:.2f} s that they take, then all again, greedy {block} tokens; {len(_PACES)} times")
    with all_given_back(engine, _HELD):
        for pace in _PACES:
            rings = long_rings(engine.spec, engine.rng, [length] * count, read)
            gone = [GenerationRequest(ring.prompt, block) for ring in rings]
            engine.abort_all(gone, [pace * whole_s * (i + 0.5) / count for i in range(count)])
            engine.ask([Ask(ring, block, f"aborted before {i}") for i, ring in enumerate(rings)])


def _seconds_for(engine: EngineUnderTest, rings: list[Ring]) -> float:
    """How long these prompts take, all at once."""
    start = time.monotonic()
    engine.told([Ask(ring, 1, f"computed {i}") for i, ring in enumerate(rings)])
    return time.monotonic() - start
