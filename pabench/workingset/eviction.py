"""Eviction knee: the largest working set that a prefix cache still holds when it is gone through in order.

Prompts of W tokens in all are sent, and sent again in the same order. While they fit, all are hit; where they do not,
a cache that evicts what was used least recently has always just evicted the next one. W is doubled until that shows,
then the gap is halved on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from pabench.workingset.asking import SOURCE_TEXT, Asker
from pabench.workingset.figure import Ended, Figure, State, missing
from pabench.workingset.prompts import Prompts

NAME = "eviction knee"
_HELD = 0.99           # share of hits from which a working set counts as held
_HELD_BY_TIME = 0.8    # the same where hits are told by time: a few of them are late
_MOST_PROMPTS = 16     # of a working set, unless they would be too long
TOO_ALIKE = 0.6        # TTFT of a hit over that of a miss, above which hits are not told by their time


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One working set, and the share of it that was hit when it was gone through again, 0..1."""

    tokens: int
    num_prompts: int
    hit_share: float
    held: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens of a block, of the shortest and longest prompt and of the largest working set; precision of the search.

    `warm_share`: TTFT of a hit over that of a miss, where hits are told by time alone.
    """

    block_size: int
    shortest: int
    longest: int
    max_tokens: int
    precision: float
    warm_share: float | None = None


async def measure_eviction(asker: Asker, prompts: Prompts, limits: Limits, found: list[CurvePoint]) -> None:
    """Append to `found` until the knee is known to `limits.precision`, or `limits.max_tokens` still fit."""
    for blocks in _sizes(found, limits):
        lengths = [count * limits.block_size for count in share_out(blocks, limits)]
        found.append(await _gone_through(asker, prompts, lengths, limits))
        asker.progress(f"working set of {found[-1].tokens:,} tokens in {len(lengths)} prompts: "
                       f"{found[-1].hit_share:.0%} hit")


def _sizes(found: list[CurvePoint], limits: Limits) -> Iterator[int]:
    """The next working set to try, in blocks, told by what was found so far."""
    most = limits.max_tokens // limits.block_size
    above = min(4 * _fewest(limits), most)
    below = 0
    while True:
        yield above
        if not found[-1].held or above >= most:
            break
        below, above = above, min(2 * above, most)
    if found[-1].held or below == 0:
        return
    while above / below > 1 + limits.precision and above - below > 1:
        middle = round(sqrt(below * above))
        middle = min(max(middle, below + 1), above - 1)
        yield middle
        below, above = (middle, above) if found[-1].held else (below, middle)


def _fewest(limits: Limits) -> int:
    """Blocks of the shortest prompt: two at least, as the last token of a prompt, and so its block, is never hit."""
    return max(2, ceil(limits.shortest / limits.block_size))


def share_out(blocks: int, limits: Limits) -> list[int]:
    """`blocks` over prompts, as evenly as it goes: whole blocks only, so that no part of one is lost."""
    at_least = ceil(blocks / max(1, limits.longest // limits.block_size))
    count = max(at_least, min(_MOST_PROMPTS, blocks // _fewest(limits)), 1)
    return [blocks // count + (i < blocks % count) for i in range(count)]


async def _gone_through(asker: Asker, prompts: Prompts, lengths: Sequence[int], limits: Limits) -> CurvePoint:
    drawn = prompts.distinct(lengths)
    first = [await asker.visit(prompt) for prompt in drawn]
    again = [await asker.visit(prompt) for prompt in drawn]
    if limits.warm_share is None:
        could = sum((each.prompt_tokens - 1) // limits.block_size * limits.block_size for each in again)
        share = min(sum(each.cached or 0 for each in again) / could, 1.0) if could else 0.0
    else:
        share = share_by_time([each.ttft_s for each in first], [each.ttft_s for each in again], limits.warm_share)
    held = share >= (_HELD if limits.warm_share is None else _HELD_BY_TIME)
    return CurvePoint(sum(each.prompt_tokens for each in first), len(drawn), share, held)


def share_by_time(first_s: Sequence[float], again_s: Sequence[float], warm_share: float) -> float:
    """The share of prompts whose second TTFT is nearer to a hit's than to a miss's, of the same prompt's first."""
    bound = (1 + warm_share) / 2
    return sum(again < bound * first for first, again in zip(first_s, again_s, strict=True)) / len(first_s)


def eviction_figure(found: Sequence[CurvePoint], ended: Ended | None, source: str | None, stated: int | None) -> Figure:
    """The figure: the largest working set that was held, in tokens, and the smallest above it that was not."""
    above = min((each.tokens for each in found if not each.held), default=None)
    held = [each for each in found if each.held and (above is None or each.tokens < above)]
    by = SOURCE_TEXT[source] if source is not None else "TTFT beside that of the first visit"
    if not held:
        if above is not None and ended is None:
            share = max(each.hit_share for each in found)
            ended = Ended("unknown", f"{share:.0%} hit of the smallest working set, {above:,} tokens; by {by}")
        return missing(NAME, "tokens", ended, stated)
    best = max(held, key=lambda each: each.tokens)
    how = f"gone through in order: {best.hit_share:.0%} hit at {best.tokens:,} tokens"
    if above is not None:
        over = next(each for each in found if each.tokens == above)
        how += f", {over.hit_share:.0%} at {above:,}"
    how += f"; by {by}" + ("" if ended is None else f"; {ended.reason}")
    state: State = "at least" if above is None else "found"
    return Figure(NAME, "tokens", state, how, best.tokens, best.tokens, above, stated)
