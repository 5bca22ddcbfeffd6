"""What a miss costs: the time to the first token (TTFT) of a prompt sent for the first time, and at once again.

The difference is the time that the hit saved, so its slope over the tokens hit is the price of a recomputed token.
Without a prefix cache nothing is saved, and the slope of the first visits over their length is that price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pabench.workingset.asking import Asker, Refused
from pabench.workingset.figure import Ended, Figure, missing
from pabench.workingset.prompts import Prompts

NAME = "recompute cost"
_UNIT = "ms per 1,000 tokens"
_SHORTEST, _LONGEST = 64, 2048  # tokens
_REPEATS = 3
_SLOW_S = 5.0  # a cold prompt that takes longer is the last length tried
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt sent twice: its tokens, those of them hit the second time (None: not told), TTFT in seconds."""

    tokens: int
    hit: float | None
    cold_s: float
    warm_s: float


async def measure_recompute(asker: Asker, prompts: Prompts, longest: int, found: list[Pair]) -> None:
    """Append to `found`: lengths that double, up to `longest` tokens or to what the engine refuses."""
    length = _SHORTEST
    while length <= min(longest, _LONGEST):
        for prompt in prompts.distinct([length] * _REPEATS):
            try:
                cold, warm = await asker.visit(prompt), await asker.visit(prompt)
            except Refused:
                if not found:
                    raise
                return  # longer than its pool
            found.append(Pair(cold.prompt_tokens, warm.cached, cold.ttft_s, warm.ttft_s))
        asker.progress(f"{length:,} tokens: cold {median(each.cold_s for each in found[-_REPEATS:]) * 1e3:.1f} ms, "
                       f"warm {median(each.warm_s for each in found[-_REPEATS:]) * 1e3:.1f} ms")
        if found[-1].cold_s > _SLOW_S:
            return
        length *= 2


def recompute_figure(found: Sequence[Pair], ended: Ended | None) -> Figure:
    """The figure: Theil's slope, the median of those between any two visits, and its 95 % interval."""
    hits = any(each.hit for each in found)
    tokens = [float(each.hit or 0) if hits else each.tokens for each in found]
    if len(set(tokens)) < 2:
        return missing(NAME, _UNIT, ended)
    seconds = [each.cold_s - each.warm_s if hits else each.cold_s for each in found]
    from scipy.stats import theilslopes  # here: it takes long to import

    slope, _, low, high = (1e6 * float(each) for each in theilslopes(seconds, tokens, alpha=_CONFIDENCE))
    what = "TTFT saved by tokens hit" if hits else "TTFT of first visits by their length, as no hit is told"
    span = f"{min(each.tokens for each in found):,} to {max(each.tokens for each in found):,} tokens"
    if not low > 0:
        reason = f"not told apart from nothing: {slope:.3g}, 95 % interval {low:.3g} to {high:.3g}; {what}, {span}"
        return missing(NAME, _UNIT, Ended("unknown", reason))
    how = f"{what}, {len(found)} prompts of {span}, Theil's slope with its 95 % interval"
    return Figure(NAME, _UNIT, "found", how, slope, low, high)


def warm_share(found: Sequence[Pair]) -> float | None:
    """TTFT of a hit over that of a miss: the largest at the two longest lengths measured; None of nothing."""
    lengths = sorted({each.tokens for each in found})[-2:]
    return max((each.warm_s / each.cold_s for each in found if each.tokens in lengths), default=None)
