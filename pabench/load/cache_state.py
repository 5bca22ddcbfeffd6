"""A stated state of the prefix cache: brought about before a run, and checked afterwards by what the engine says it
took from its cache (`cached_tokens` of each answer's usage).

Cold: nothing of the run's prompts is cached when it starts. Warm: each session's first prompt was asked once before. A
share: the cache was emptied, and then that share of the first prompts' whole blocks was asked, a prefix of each prompt.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import aiohttp
import numpy as np
import orjson

from pabench.errors import UsageError
from pabench.load.client import LoadClient, PreparedRequest
from pabench.load.line import clock
from pabench.load.manifest import CacheCheck
from pabench.load.records import RequestRecord
from pabench.load.schedule import ScheduledRequest
from pabench.load.workload import CacheState
from pabench.probe import Codec, Ring

_AT_ONCE = 16
_RESETS, _RESET_PAUSE_S = 10, 0.2  # an engine lets go of the last request's blocks a moment after its answer
_BUSY = 400  # SGLang's answer to a reset while a request runs
_RESET_TIMEOUT_S = 60.0  # for all tries
_SEPARATOR = 1          # token
_LARGEST_BLOCK = 256
_WARM_SHARE = 0.9      # of the tokens in whole blocks that a warm cache could give
SHARE_TOLERANCE = 0.05  # of the tokens in whole blocks, either way of a stated share
_MOST_CHECKED = 5000   # requests, in the order of sending: what was not cold shows in the first
_MOST_TOKENS = 20_000_000  # of them together: a count is kept for each, 100 bytes or so


async def bring_about(
    state: CacheState, requests: Sequence[ScheduledRequest], *, client: LoadClient, http: aiohttp.ClientSession,
    reset_url: str | None, written: Callable[[ScheduledRequest], PreparedRequest], seed: int, block_size: int | None,
) -> str:
    """Empty the cache, where the engine has a route for that, or fill it; a note on what was done.

    Raises UsageError where the prompts have too few blocks for a share of them.
    """
    if state == "warm":
        asked = [_asked(one, len(_ids(one))) for one in requests if one.turn == 0]
        guess = "" if block_size else "; the size of the engine's blocks is not told, and is guessed from its hits"
        done = await _fill(asked, client, written)
        return f"stated warm: {done} prompts were asked once before, one token each{guess}"
    if state == "cold":
        return f"stated cold: {await _empty(http, reset_url)}"
    assert isinstance(state, float), "the one that is left"
    assert block_size is not None, "without one a share is refused when the run is planned"
    lengths = prefixes_to_fill(requests, state, block_size, seed)
    emptied = await _empty(http, reset_url)
    # One token more than whole blocks: an engine may keep none that ends with the prompt.
    more = 1 if block_size > 1 else 0
    done = await _fill([_asked(requests[at], length + more) for at, length in lengths.items()], client, written)
    return (f"stated {state:.0%} filled: {emptied}; then prefixes of {done} prompts, {sum(lengths.values())} tokens in "
            "blocks, were asked, one token each")


async def _empty(http: aiohttp.ClientSession, reset_url: str | None) -> str:
    if reset_url is None:
        return "the engine has no route to empty its cache, so it is only checked"
    try:
        async with asyncio.timeout(_RESET_TIMEOUT_S):
            return await _reset(http, reset_url)
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"POST {reset_url} failed ({type(error).__name__}), so it is only checked"


async def _reset(http: aiohttp.ClientSession, reset_url: str) -> str:
    for _ in range(_RESETS):
        async with http.post(reset_url) as answer:
            if answer.status not in (200, _BUSY):
                return f"POST {reset_url} gave HTTP {answer.status}, so it is only checked"
            if answer.status == 200 and not _refuses(await answer.read()):
                return f"the cache was emptied (POST {reset_url})"
        await asyncio.sleep(_RESET_PAUSE_S)
    return f"POST {reset_url} was refused, as while blocks are held, so it is only checked"


def _refuses(body: bytes) -> bool:
    """vLLM answers with 200, and with this where a block is still held; others with anything."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(told, dict) and told.get("success") is False


def prefixes_to_fill(requests: Sequence[ScheduledRequest], share: float, block_size: int, seed: int) -> dict[int, int]:
    """Index of a request -> tokens of its prompt to have cached, whole blocks: of each session's first prompt `share`
    of what a cache could give, rounded down or up by chance so that all together come to `share` within a block.

    Raises UsageError where there are too few blocks for that.
    """
    firsts = [one for one in requests if one.turn == 0]
    blocks = np.asarray([_could(one.prompt_tokens, block_size) // block_size for one in firsts])
    if blocks.sum() * SHARE_TOLERANCE < 1:
        raise UsageError(f"a share of the cache is met within {SHARE_TOLERANCE:.0%}: expected at least "
                         f"{1 / SHARE_TOLERANCE:.0f} whole blocks of {block_size} tokens in the first prompts, got "
                         f"{blocks.sum()}; make them longer or more")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(firsts))
    ends = np.floor(np.cumsum(share * blocks[order]) + rng.random()).astype(int)
    filled = np.diff(ends, prepend=0)
    return {firsts[at].index: int(count) * block_size for at, count in zip(order, filled, strict=True) if count}


def _could(prompt_tokens: int, block_size: int) -> int:
    """Tokens of a prompt that a cache could give: in whole blocks, and its last one is always computed."""
    return (prompt_tokens - 1) // block_size * block_size


def _ids(one: ScheduledRequest) -> tuple[int, ...]:
    assert one.oracle is not None, "cache states are of verified prompts"
    return one.oracle.prompt


def _asked(one: ScheduledRequest, length: int) -> ScheduledRequest:
    """The first `length` tokens of a prompt, to be answered with one token."""
    ids = _ids(one)[:length]
    request = replace(one.request, prompt=Codec.encode(ids) if isinstance(one.request.prompt, str) else ids,
                      max_tokens=1, n=1, beam_width=0, request_id=f"{one.name}-before")
    return replace(one, request=request, cancel_after_tokens=None)


async def _fill(
    asked: Sequence[ScheduledRequest], client: LoadClient, written: Callable[[ScheduledRequest], PreparedRequest],
) -> str:
    """How many of them were answered, "12 of 12"."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(one: ScheduledRequest) -> bool:
        async with gate:
            exchange = await client.send(written(one), clock())
        return exchange.fault is None and exchange.status == 200

    done = await asyncio.gather(*(ask(one) for one in asked))
    return f"{sum(done)} of {len(done)}"


def check(
    state: CacheState, requests: Sequence[ScheduledRequest], records: Sequence[RequestRecord], block_size: int | None,
    until_s: float = math.inf,
) -> CacheCheck:
    """Whether it was so. `records` are those of `requests`, in the same order.

    Of the engine it is known that it tells cached tokens: where usage has none, it leaves out a 0. What was sent from
    `until_s` on, when the run was resumed, tells nothing: it may have been sent before the break too.
    """
    sent = sorted((record for record in records if record.sent_s is not None and record.sent_s < until_s),
                  key=lambda record: record.sent_s or 0.0)
    told = [record for record in sent if record.usage_prompt_tokens is not None or record.cached_tokens is not None]
    if not told:
        return CacheCheck(stated=state, checked=0, broken="no answer says how many of its prompt's tokens were cached")
    if state == "cold":
        ends = np.cumsum([record.prompt_tokens + record.max_tokens for record in told[:_MOST_CHECKED]])
        told = told[:max(1, int(np.count_nonzero(ends <= _MOST_TOKENS)))]
        return CacheCheck(stated=state, checked=len(told), broken=_not_cold(requests, told, sent))
    firsts = [record for record in told if requests[record.index].turn == 0]
    size = block_size or _likely_size(record.cached_tokens or 0 for record in firsts)
    could = sum(_could(record.prompt_tokens, size) for record in firsts)
    was = sum(record.cached_tokens or 0 for record in firsts)
    broken = None
    if state == "warm" and was < _WARM_SHARE * could:
        broken = f"{was} of the {could} prompt tokens that a warm cache would have given came from it"
    if isinstance(state, float) and abs(was - state * could) > SHARE_TOLERANCE * could:
        broken = (f"{was} of the {could} prompt tokens in whole blocks came from it, expected {state:.0%} within "
                  f"{SHARE_TOLERANCE:.0%} of them")
    return CacheCheck(stated=state, checked=len(told), broken=broken, found=was / could if could else None)


def _likely_size(hits: Iterable[int]) -> int:
    """Of the blocks of an engine that does not tell: the largest power of two that all hits are multiples of."""
    common = math.gcd(*hits)
    return min(common & -common, _LARGEST_BLOCK) or 1


def _not_cold(
    requests: Sequence[ScheduledRequest], told: Sequence[RequestRecord], sent: Sequence[RequestRecord]
) -> str | None:
    """A hit must be on what other requests of the run, sent before it was answered, have in common with it: those too
    that were cut off or failed, and told nothing.
    """
    seen: Counter[int] = Counter()
    added = 0
    broken = tokens = 0
    for record in sorted(told, key=_answered_s):
        while added < len(sent) and (sent[added].sent_s or 0.0) <= _answered_s(record):
            seen.update(_prefixes(requests[sent[added].index]))
            added += 1
        known = _SEPARATOR  # which all prompts begin with, those of warm-ups too
        for prefix in islice(_prefixes(requests[record.index]), _SEPARATOR, None):
            if seen[prefix] < 2:  # it is its own first
                break
            known += 1
        too_many = (record.cached_tokens or 0) - known
        if too_many > 0:
            broken, tokens = broken + 1, tokens + too_many
    if not broken:
        return None
    return f"{broken} of {len(told)} requests hit {tokens} tokens that nobody had sent in this run"


def _answered_s(record: RequestRecord) -> float:
    """When its prompt had been read: at the first token, of an answer that came whole at the latest when it ended."""
    return record.first_s or record.end_s or record.sent_s or 0.0


def _prefixes(one: ScheduledRequest) -> Iterator[int]:
    """A number for each prefix of a request's tokens, the answer's behind the prompt's where it is known."""
    answer = one.oracle.expected(one.request.max_tokens) if isinstance(one.oracle, Ring) else []
    number = 0
    for token in (*_ids(one), *answer):
        number = hash((number, token))
        yield number
