"""The comparison in a few words: one tile a question, all numbers computed from the summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from pabench.analysis.summary import RunSummary
from pabench.report.groups import Engine, Group, believed
from pabench.report.load_figures import useful_throughput
from pabench.report.text import DOUBTED, count, number, percent, ratio

NEARLY_EQUAL = 1.03  # a smaller factor is not called a difference


@dataclass(frozen=True, slots=True)
class Bar:
    """One engine's value in a tile. `fraction` of the longest bar, 0..1; None where the value is not known."""

    engine: Engine
    text: str
    fraction: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One question answered: `factor` is "4.2×" or empty, `winner` whose it is, `claim` the same as a sentence."""

    title: str
    factor: str
    winner: str
    claim: str
    scope: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class _Measure:
    """One question. `claim` is a sentence over {best}, {factor} and {worst}; `noun` names the quantity."""

    title: str
    short: str                                   # what follows the factor, before the winner's name
    claim: str
    noun: str
    value: Callable[[RunSummary], float | None]
    show: Callable[[float], str]
    higher_is_better: bool = True
    peak: bool = False                           # best over the loads that all ran; else at the highest of them


def _quantile(field: str, name: str) -> Callable[[RunSummary], float | None]:
    def value(summary: RunSummary) -> float | None:
        quantiles = getattr(summary, field)
        return None if quantiles is None else float(getattr(quantiles, name))

    return value


def _ms(value: float) -> str:
    return f"{number(value)} ms"


_MEASURES = (
    _Measure("Sequences held, mean", "as many with", "{best} holds {factor} the sequences of {worst} at once",
             "sequences held at once", lambda s: s.mean_running, count, peak=True),
    _Measure("Throughput", "as much with", "{best} reaches {factor} the throughput of {worst}",
             "throughput", useful_throughput, lambda v: f"{number(v)} tokens/s", peak=True),
    _Measure("Goodput", "as much with", "{best} has {factor} the goodput of {worst}",
             "goodput", lambda s: s.goodput_per_s, lambda v: f"{number(v)} requests/s", peak=True),
    _Measure("TTFT p99", "shorter with", "{best} has a {factor} shorter p99 time to first token than {worst}",
             "p99 time to first token", _quantile("ttft_ms", "p99"), _ms, False),
    _Measure("TPOT p50", "shorter with", "{best} has a {factor} shorter p50 time per output token than {worst}",
             "p50 time per output token", _quantile("tpot_ms", "p50"), _ms, False),
    _Measure("Effective utilisation", "as high with", "{best} has {factor} the effective utilisation of {worst}",
             "effective utilisation", lambda s: s.effective_utilisation, percent),
)


def tiles(group: Group) -> list[Tile]:
    """The tiles of one group, without questions that no engine of it answers."""
    made = [_tile(group, measure) for measure in _MEASURES]
    return [tile for tile in made if tile is not None]


def memory_sentence(group: Group) -> str:
    """Whether the engines had the same room for KV."""
    sizes = [(engine.name, {run.capacity_tokens for run in engine.runs}) for engine in group.engines]
    if any(None in found for _, found in sizes):
        silent = ", ".join(name for name, found in sizes if None in found)
        return f"The size of the KV cache is not told by {silent}, so nothing here says that memory was equal."
    every = set().union(*(found for _, found in sizes))
    if len(every) == 1:
        return f"All had the same room for KV: {count(every.pop())} slots." if len(sizes) > 1 else ""
    each = "; ".join(f"{name} {' and '.join(count(c) for c in sorted(c for c in found if c))}" for name, found in sizes)
    return f"The engines did not have the same room for KV, in slots: {each}."


def sentences(made: list[Tile]) -> list[str]:
    """Each tile with a factor as one sentence."""
    return [f"{tile.claim}, {tile.scope}." for tile in made if tile.claim]


def why_nothing(group: Group) -> str:
    """What a group without a sentence lacks."""
    if not group.common_levels:
        return "no load was carried by all engines."
    if len(group.engines) > 1 and sum(any(run.believable for run in engine.runs) for engine in group.engines) < 2:
        return "fewer than two engines have a valid, complete run of this workload."
    return "only one engine tells these figures for this workload."


def _tile(group: Group, measure: _Measure) -> Tile | None:
    levels = _levels(group) if measure.peak else _levels(group)[-1:]
    found = [(engine, *_best(group, engine, levels, measure)) for engine in group.engines]
    numbers = [value for _, value, _ in found if value is not None]
    if not numbers:
        return None
    factor, winner, claim = _compare(measure, [(engine, v) for engine, v, good in found if v is not None and good])
    longest = max(numbers)
    bars = tuple(
        Bar(
            engine,
            measure.show(value) if value is not None else "–",
            None if value is None else (value / longest if longest > 0 else 0.0),
            "" if good else DOUBTED,
        )
        for engine, value, good in found
    )
    return Tile(measure.title, factor, winner, claim, _scope(group, levels), bars)


def _levels(group: Group) -> tuple[float, ...]:
    """The loads that every engine ran, believably where there are such: one alone would win by its load."""
    sound = tuple(level for level in group.common_levels
                  if all(run.believable for engine in group.engines for run in believed(group.at(engine, level))))
    return sound or group.common_levels


def _best(
    group: Group, engine: Engine, levels: Sequence[float], measure: _Measure
) -> tuple[float | None, bool]:
    """(value, whether it may be believed). Of repeats the median: the best of them grows with their number."""
    pools = [believed(group.at(engine, level)) for level in levels]
    told = [[v for v in (measure.value(run.summary) for run in pool) if v is not None] for pool in pools]
    known = [median(values) for values in told if values]
    best = (max if measure.higher_is_better else min)(known) if known else None
    return best, all(run.believable for pool in pools for run in pool)


def _scope(group: Group, levels: Sequence[float]) -> str:
    if len(levels) == 1:
        return f"at {group.load_text(levels[0])}"
    if tuple(levels) == group.levels:
        return "best over all loads"
    return f"best over {' and '.join(group.load_text(level) for level in levels)}"


def _compare(measure: _Measure, known: list[tuple[Engine, float]]) -> tuple[str, str, str]:
    """(factor, winner, claim) of the best against the worst; empty where there is nothing to divide."""
    ordered = sorted(known, key=lambda pair: pair[1], reverse=measure.higher_is_better)
    if len(ordered) < 2 or min(value for _, value in ordered) <= 0:
        return "", "", ""
    (best, good), (worst, bad) = ordered[0], ordered[-1]
    factor = max(good, bad) / min(good, bad)
    against = f"({measure.show(good)} against {measure.show(bad)})"
    if factor < NEARLY_EQUAL:
        claim = f"{best.name} and {worst.name} are within 3 % of each other in {measure.noun} {against}"
        return "≈ 1×", "about the same", claim
    claim = measure.claim.format(best=best.name, factor=ratio(factor), worst=worst.name)
    return ratio(factor), f"{measure.short} {best.name}", f"{claim} {against}"
