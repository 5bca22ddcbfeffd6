"""Preemption onset: how many tokens live at once where sequences that grow together no longer all fit.

A few sequences start at three quarters of a level and grow to it; each level starts where the last one ended. The place
is told by the client's own record: a stream that stands still while another goes on, or does not begin before another
has ended. It counts tokens, not seconds, so a busy machine is not taken for a full one. Whether sequences were
preempted is what the engine's counter says, where it has one.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Literal

from pabench.workingset.asking import Asker, Visit
from pabench.workingset.figure import Ended, Figure, missing
from pabench.workingset.prompts import Prompts

NAME = "preemption onset"
_FIRST_TOKENS = 256
_FEWEST = 4            # sequences at once
_STEP = 4 / 3          # from level to level
_STANDS_STILL = 8      # arrivals of another stream within one gap of this one

Sign = Literal["none", "preempted", "stood still", "waited"]


@dataclass(frozen=True, slots=True)
class Level:
    """Sequences that grew to `tokens` live tokens at once.

    `onset_tokens`: those live where the first sign was seen; `onset_slots`: the same in whole blocks, as a pool counts.
    """

    sequences: int
    tokens: int
    preemptions: float | None  # counted by the engine meanwhile; None: it does not count them
    sign: Sign
    onset_tokens: int
    onset_slots: int


async def measure_preemption(
    asker: Asker, prompts: Prompts, *, block_size: int, longest: int, max_tokens: int, found: list[Level],
) -> None:
    """Append levels to `found` until one shows a sign, or `max_tokens` live at once."""
    tokens = float(_FIRST_TOKENS)
    while tokens <= max_tokens:
        found.append(await _grown(asker, prompts, round(tokens), block_size, longest))
        level = found[-1]
        asker.progress(f"{level.sequences} sequences grown to {level.tokens:,} live tokens: {_sign_text(level)}")
        if level.sign != "none":
            return
        tokens *= _STEP


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
    stall_s, late_s = first_stall(streams), first_wait(streams)
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
    total = sum(each.prompt_tokens + len(each.token_times_s) for each in streams)
    return Level(len(streams), total, preempted, sign, sum(live), sum(ceil(each / block_size) for each in live) *
                 block_size)


def first_stall(streams: Sequence[Visit]) -> float | None:
    """When a stream first stood still: others had `_STANDS_STILL` arrivals before its next one. None: none did."""
    arrivals = [sorted(set(each.token_times_s)) for each in streams]
    found = [start for own in arrivals for start, end in pairwise(own)
             if any(bisect_left(other, end) - bisect_right(other, start) >= _STANDS_STILL for other in arrivals)]
    return min(found, default=None)


def first_wait(streams: Sequence[Visit]) -> float | None:
    """When the last stream had begun of those that did before another began only behind an end; None: none waited."""
    begun = sorted(each.token_times_s[0] for each in streams if each.token_times_s)
    first_end = min((each.token_times_s[-1] for each in streams if len(each.token_times_s) > 1), default=None)
    if first_end is None or begun[-1] <= first_end:
        return None
    return max(each for each in begun if each <= first_end)


def _live_at(streams: Sequence[Visit], at_s: float) -> list[int]:
    """Tokens of each stream that has begun at `at_s` and not ended before."""
    return [each.prompt_tokens + bisect_right(each.token_times_s, at_s) for each in streams
            if each.token_times_s and each.token_times_s[0] <= at_s <= each.token_times_s[-1]]


def _sign_text(level: Level) -> str:
    counted = "" if level.preemptions is None else f" ({level.preemptions:g} preemptions counted)"
    if level.sign == "none":
        return f"all went on{counted}"
    what = {"preempted": "preempted", "stood still": "a stream stood still", "waited": "a request waited"}[level.sign]
    return f"{what} at {level.onset_tokens:,} live tokens{counted}"


def preemption_figure(found: Sequence[Level], ended: Ended | None, stated: int | None) -> Figure:
    """The figure: tokens live at the onset, in whole blocks. Without one, those that lived at once and all went on."""
    if not found:
        return missing(NAME, "tokens", ended, stated)
    last = found[-1]
    if last.sign == "none":
        how = f"{last.sequences} sequences, {_sign_text(last)}" + ("" if ended is None else f"; {ended.reason}")
        return Figure(NAME, "tokens", "at least", how, last.tokens, last.tokens, None, stated)
    how = f"{last.sequences} sequences that grow: {_sign_text(last)}, in whole blocks {last.onset_slots:,}"
    return Figure(NAME, "tokens", "found", how, last.onset_slots, last.onset_tokens, last.onset_slots, stated)
