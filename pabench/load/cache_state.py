"""A stated state of the prefix cache: brought about before a run, and checked afterwards by what the engine says it
took from its cache (`cached_tokens` of each answer's usage).

Cold: nothing of the run's prompts is cached when it starts. Warm: each session's first prompt was asked once before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import aiohttp

from pabench.load.client import LoadClient, PreparedRequest
from pabench.load.line import clock
from pabench.load.manifest import CacheCheck
from pabench.load.records import RequestRecord
from pabench.load.schedule import ScheduledRequest
from pabench.load.workload import CacheState
from pabench.probe import Ring

_AT_ONCE = 16
_WARM_SHARE = 0.9      # of the tokens in whole blocks that a warm cache could give
_MOST_CHECKED = 5000   # requests, in the order of sending: what was not cold shows in the first


async def bring_about(
    state: CacheState, requests: Sequence[ScheduledRequest], *, client: LoadClient, http: aiohttp.ClientSession,
    reset_url: str | None, written: Callable[[ScheduledRequest], PreparedRequest],
) -> str:
    """Empty the cache, where the engine has a route for that, or fill it; a note on what was done."""
    if state == "warm":
        return await _fill(requests, client, written)
    if reset_url is None:
        return "stated cold: the engine has no route to empty its cache, so it is only checked"
    try:
        async with http.post(reset_url) as answer:
            return (f"stated cold: the cache was emptied (POST {reset_url})" if answer.status == 200 else
                    f"stated cold: POST {reset_url} gave HTTP {answer.status}, so it is only checked")
    except aiohttp.ClientError as error:
        return f"stated cold: POST {reset_url} failed ({type(error).__name__}), so it is only checked"


async def _fill(
    requests: Sequence[ScheduledRequest], client: LoadClient, written: Callable[[ScheduledRequest], PreparedRequest],
) -> str:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(one: ScheduledRequest) -> bool:
        short = replace(one.request, max_tokens=1, n=1, beam_width=0, request_id=f"{one.name}-before")
        async with gate:
            exchange = await client.send(written(replace(one, request=short, cancel_after_tokens=None)), clock())
        return exchange.fault is None and exchange.status == 200

    asked = await asyncio.gather(*(ask(one) for one in requests if one.turn == 0))
    return f"stated warm: {sum(asked)} of {len(asked)} prompts were asked once before, one token each"


def check(
    state: CacheState, requests: Sequence[ScheduledRequest], records: Sequence[RequestRecord], block_size: int | None,
) -> CacheCheck:
    """Whether it was so. `records` are those of `requests`, in the same order."""
    sent = sorted((record for record in records if record.sent_s is not None), key=lambda record: record.sent_s or 0.0)
    told = [record for record in sent if record.cached_tokens is not None][:_MOST_CHECKED]
    if not told:
        broken: str | None = "no answer says how many of its prompt's tokens were cached"
    else:
        broken = _not_cold(requests, told, sent) if state == "cold" else _not_warm(requests, told, block_size or 1)
    return CacheCheck(stated=state, checked=len(told), broken=broken)


def _not_warm(requests: Sequence[ScheduledRequest], told: Sequence[RequestRecord], block_size: int) -> str | None:
    firsts = [record for record in told if requests[record.index].turn == 0]
    could = sum((record.prompt_tokens - 1) // block_size * block_size for record in firsts)
    was = sum(record.cached_tokens or 0 for record in firsts)
    if was >= _WARM_SHARE * could:
        return None
    return f"{was} of the {could} prompt tokens that a warm cache would have given came from it"


def _not_cold(
    requests: Sequence[ScheduledRequest], told: Sequence[RequestRecord], sent: Sequence[RequestRecord]
) -> str | None:
    """A hit must be on what other requests of the run, sent before it was answered, have in common with it: those too
    that were cut off or failed, and told nothing.
    """
    seen: Counter[int] = Counter()
    added = 0
    broken = tokens = 0
    for record in sorted(told, key=lambda record: record.first_s or record.sent_s or 0.0):
        while added < len(sent) and (sent[added].sent_s or 0.0) <= (record.first_s or record.sent_s or 0.0):
            seen.update(_prefixes(requests[sent[added].index]))
            added += 1
        known = 0
        for prefix in _prefixes(requests[record.index]):
            if seen[prefix] < 2:  # it is its own first
                break
            known += 1
        too_many = (record.cached_tokens or 0) - known
        if too_many > 0:
            broken, tokens = broken + 1, tokens + too_many
    if not broken:
        return None
    return f"{broken} of {len(told)} requests hit {tokens} tokens that nobody had sent in this run"


def _prefixes(one: ScheduledRequest) -> Iterator[int]:
    """A number for each prefix of a request's tokens, the answer's behind the prompt's where it is known."""
    oracle = one.oracle
    assert oracle is not None, "cache states are of verified prompts"
    answer = oracle.expected(one.request.max_tokens) if isinstance(oracle, Ring) else []
    number = 0
    for token in (*oracle.prompt, *answer):
        number = hash((number, token))
        yield number
