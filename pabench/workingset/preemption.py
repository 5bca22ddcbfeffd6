"""Preemption onset: how many tokens live at once where sequences that grow together no longer all fit.

A few sequences start at three quarters of a level and grow to it; each level starts where the last one ended. The place
is told by the client's own record: a stream that stands still while another goes on, at its pace, to its end, or does
not begin before another has ended. It counts tokens, so that a busy machine is not taken for a full one. Whether
sequences were preempted is what the engine's counter says. Where it counts none, a sign must be seen twice.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from statistics import median
from typing import Literal

from pabench.workingset.asking import Asker, Visit
from pabench.workingset.figure import Ended, Figure, missing
from pabench.workingset.prompts import Prompts

NAME = "preemption onset"
_FIRST_TOKENS = 256
_FEWEST = 4            # sequences at once
_STEP = 4 / 3          # from level to level
_STANDS_STILL = 8      # arrivals of another stream within one gap of this one
_AT_ONCE = 1 / 4       # of that stream's usual gap: closer together, on average, they were held up and came at once

Sign = Literal["none", "preempted", "stood still", "waited"]


@dataclass(frozen=True, slots=True)
class Level:
    """Sequences that grew at once.

    `live_tokens`: those live where the first sign was seen, or, without one, where the first sequence ended;
    `live_slots`: the same in whole blocks, as a pool counts.
    """

    sequences: int
    live_tokens: int
    live_slots: int
    preemptions: float | None  # counted by the engine meanwhile; None: it does not count them
    sign: Sign


async def measure_preemption(
    asker: Asker, prompts: Prompts, *, block_size: int, longest: int, max_tokens: int, found: list[Level],
) -> None:
    """Append levels to `found` until one shows a sign, or `max_tokens` live at once."""
    for tokens in levels_up_to(max_tokens):
        level = await _grown(asker, prompts, tokens, block_size, longest)
        if level.sign in ("stood still", "waited"):
            level = await _grown(asker, prompts, tokens, block_size, longest)
        found.append(level)
        asker.progress(f"{level.sequences} sequences that grow together: {_sign_text(level)}")
        if level.sign != "none":
            return


def levels_up_to(max_tokens: int) -> Iterator[int]:
    """Live tokens of level after level, the last of which is `max_tokens` itself; none below the first one."""
    tokens = float(_FIRST_TOKENS)
    while tokens < max_tokens:
        yield round(tokens)
        tokens *= _STEP
    if max_tokens >= _FIRST_TOKENS:
        yield max_tokens


async def _grown(asker: Asker, prompts: Prompts, tokens: int, block_size: int, longest: int) -> Level:
    count = max(_FEWEST, ceil(tokens / longest))
    growth = max(1, round(tokens / count * (1 - 1 / _STEP)))
    # Of unequal lengths, so that they do not all ask for their next block in one step.
    lengths = [tokens // count - growth - i * block_size // count for i in range(count)]
    before = await asker.preemptions()
    drawn = prompts.distinct([max(length, 8) for length in lengths], at_once=True)
    streams = await asyncio.gather(*(asker.visit(prompt, growth) for prompt in drawn))
    after = await asker.preemptions()
    preempted = None if before is None or after is None else after - before
    return level_of(streams, preempted, block_size)


def level_of(streams: Sequence[Visit], preempted: float | None, block_size: int) -> Level:
    """What `streams` that ran at once show."""
    # Where the engine counts a preemption, that is why a stream stood still, however the others' tokens came.
    stall_s, late_s = first_stall(streams, at_pace=not preempted), first_wait(streams)
    ends = [each.token_times_s[-1] for each in streams if each.token_times_s]
    at_s = min((each for each in (stall_s, late_s) if each is not None), default=min(ends, default=0.0))
    sign: Sign = "none"
    if preempted:
        sign = "preempted"
    elif stall_s is not None:
        sign = "stood still"
    elif late_s is not None:
        sign = "waited"
    live = _live_at(streams, at_s)
    slots = sum(ceil(each / block_size) for each in live) * block_size
    return Level(len(streams), sum(live), slots, preempted, sign)


def first_stall(streams: Sequence[Visit], *, at_pace: bool = True) -> float | None:
    """When a stream first stood still, seconds: another had `_STANDS_STILL` arrivals and ended before its next one.

    `at_pace`: not where those came at once, as what is overdue does behind a pause of all.
    """
    arrivals = [sorted(set(each.token_times_s)) for each in streams if each.token_times_s]
    found = [start for own in arrivals for start, end in pairwise(own)
             if any(start < other[-1] < end and _went_on(other, start, at_pace) for other in arrivals)]
    return min(found, default=None)


def _went_on(arrivals: Sequence[float], start: float, at_pace: bool) -> bool:
    after = arrivals[bisect_right(arrivals, start):]
    if len(after) < _STANDS_STILL:
        return False
    usual_s = median(end - begin for begin, end in pairwise(arrivals)) if at_pace else 0.0
    return after[-1] - after[0] >= _AT_ONCE * (len(after) - 1) * usual_s


def first_wait(streams: Sequence[Visit]) -> float | None:
    """When the last stream had begun of those that did before another began only behind an end; None: none waited."""
    begun = sorted(each.token_times_s[0] for each in streams if each.token_times_s)
    # An answer that comes in one piece does not tell when it began.
    first_end = min((end for first, *_, end in (each.token_times_s for each in streams if len(each.token_times_s) > 1)
                     if end > first), default=None)
    if first_end is None or begun[-1] <= first_end:
        return None
    return max(each for each in begun if each <= first_end)


def _live_at(streams: Sequence[Visit], at_s: float) -> list[int]:
    """Tokens in the cache of each stream that has begun at `at_s` and not ended before: all but its newest one."""
    return [each.prompt_tokens + bisect_right(each.token_times_s, at_s) - 1 for each in streams
            if each.token_times_s and each.token_times_s[0] <= at_s <= each.token_times_s[-1]]


def _sign_text(level: Level) -> str:
    counted = "" if level.preemptions is None else f" (preemptions counted: {level.preemptions:g})"
    if level.sign == "none":
        return f"all went on to {level.live_tokens:,} live tokens{counted}"
    what = {"preempted": "preempted", "stood still": "a stream stood still", "waited": "a request waited"}[level.sign]
    return f"{what} at {level.live_tokens:,} live tokens{counted}"


def preemption_figure(found: Sequence[Level], ended: Ended | None, stated: int | None) -> Figure:
    """The figure: tokens live at the onset, in whole blocks. Without one, those that lived at once and all went on."""
    if not found:
        return missing(NAME, "tokens", ended, stated)
    last = found[-1]
    if last.sign == "none":
        best = max(found, key=lambda each: each.live_tokens)
        why = "" if ended is None else f"; {ended.reason}"
        how = f"{best.sequences} sequences that grow: {_sign_text(best)}{why}"
        return Figure(NAME, "tokens", "at least", how, best.live_tokens, best.live_tokens, None, stated)
    how = f"{last.sequences} sequences that grow: {_sign_text(last)}, in whole blocks {last.live_slots:,}"
    return Figure(NAME, "tokens", "found", how, last.live_slots, last.live_tokens, last.live_slots, stated)
