"""Block size, from what a shared beginning gives: hits come in whole blocks.

Of `shared` tokens in common, whole blocks are hit: `cached = shared // size * size`. One token less than `cached` then
gives one block less, and the difference is the size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pabench.workingset.asking import SOURCE_TEXT, Asker
from pabench.workingset.figure import Ended, Figure, missing
from pabench.workingset.prompts import TAIL_TOKENS, Prompts

NAME = "block size"
_FIRST_SHARED = 64
_SPARE = 4  # tokens that the engine's count may be ahead of ours: a BOS put before words, a word of two tokens


@dataclass(frozen=True, slots=True)
class Shared:
    """Tokens that a prompt had in common with an earlier one, and how many of them came from the cache."""

    shared: int
    cached: int


async def measure_block_size(asker: Asker, prompts: Prompts, longest: int, found: list[Shared]) -> None:
    """Append to `found` until the size is clear, with beginnings of up to `longest` tokens."""
    shared = min(_FIRST_SHARED, longest - TAIL_TOKENS)
    while True:
        beginning = prompts.beginning(shared + TAIL_TOKENS)
        await asker.visit(prompts.sharing(beginning, len(beginning)))
        most = less = await _hit(asker, prompts, beginning, shared, found)
        if most > 0 or 2 * shared + 2 * TAIL_TOKENS > longest:
            break
        shared *= 2
    fewer = most
    while less == most > 0 and most - fewer < _SPARE and fewer > 2:
        fewer -= 1
        less = await _hit(asker, prompts, beginning, fewer, found)
    if 2 < less < most:
        await _hit(asker, prompts, beginning, less - 1, found)  # one block further down: is it the same?


async def _hit(
    asker: Asker, prompts: Prompts, beginning: tuple[int, ...], shared: int, found: list[Shared]
) -> int:
    visit = await asker.visit(prompts.sharing(beginning, shared))
    found.append(Shared(shared, int(visit.cached or 0)))
    return found[-1].cached


def block_size_of(found: Sequence[Shared]) -> int | None:
    """The one size that all of `found` agree with; None where there is none."""
    counts = sorted({each.cached for each in found}, reverse=True)
    if len(counts) < 2 or counts[0] == 0:
        return None
    size = counts[0] - counts[1]
    fits = all(each.cached % size == 0 and -_SPARE <= each.shared - each.cached < size for each in found)
    return size if fits and math.gcd(*counts) == size else None


def block_size_figure(found: Sequence[Shared], ended: Ended | None, source: str | None, stated: int | None) -> Figure:
    """The figure, in tokens."""
    size = block_size_of(found)
    if size is not None and source is not None:
        steps = ", ".join(f"{each.shared} → {each.cached}" for each in found if each.cached)
        return Figure(NAME, "tokens", "found", f"tokens shared → hit: {steps}; by {SOURCE_TEXT[source]}", size, size,
                      size, stated)
    if found and ended is None:
        told = ", ".join(f"{each.shared} → {each.cached}" for each in found)
        ended = Ended("unknown", f"hits do not come in steps of one size (tokens shared → hit: {told})")
    return missing(NAME, "tokens", ended, stated)
