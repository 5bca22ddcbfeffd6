"""The comparison in a few words: one tile a question, all numbers computed from the summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pabench.report.groups import Engine, Group, RunData, believed
from pabench.report.questions import AT_MOST, QUESTIONS, Question
from pabench.report.text import DOUBTED, count, listed, ratio
from pabench.report.versus import versus

NOT_TOLD = "not told by this engine"


@dataclass(frozen=True, slots=True)
class Bar:
    """One engine's value in a tile. `fraction` of the longest bar, 0..1; None where the value is not known.

    `note`: why it is not known, or how far it may be believed; `sound`: whether the factor may rest on it.
    """

    engine: Engine
    text: str
    fraction: float | None
    note: str = ""
    sound: bool = True

    @property
    def doubted(self) -> bool:
        """Whether the note says that a run may not be believed."""
        return self.note.startswith(DOUBTED)


@dataclass(frozen=True, slots=True)
class Tile:
    """One question answered: `factor` is "4.2×" or empty, `winner` whose it is, `claim` the same as a sentence.

    `basis` says what the factor rests on, `each` how it is at each load.
    """

    title: str
    scope: str
    bars: tuple[Bar, ...]
    factor: str = ""
    winner: str = ""
    claim: str = ""
    basis: str = ""
    each: str = ""


@dataclass(frozen=True, slots=True)
class _Best:
    """The best that an engine came to over some loads, with the runs of that load."""

    engine: Engine
    value: float
    runs: tuple[RunData, ...]


def tiles(group: Group) -> list[Tile]:
    """The tiles of one group, without questions that no engine of it answers."""
    made = [_tile(group, question) for question in QUESTIONS]
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
    return [f"{tile.claim}, {tile.scope}{f': {tile.each}' if tile.each else ''}." for tile in made if tile.claim]


def why_nothing(group: Group) -> str:
    """What a group without a sentence lacks."""
    if not group.common_levels:
        return "no load was carried by all engines."
    if len(group.engines) > 1 and sum(any(run.believable for run in engine.runs) for engine in group.engines) < 2:
        return "fewer than two engines have a valid, complete run of this workload."
    return "only one engine tells these figures for this workload."


def _tile(group: Group, question: Question) -> Tile | None:
    levels = _levels(group, question)
    if not question.peak:
        levels = levels[-1:]
    found = [(engine, _best(group, engine, levels, question)) for engine in group.engines]
    longest = max((best.value for _, best in found if best is not None), default=None)
    if longest is None:
        return None
    bars = tuple(_bar(group, engine, best, levels, question, longest) for engine, best in found)
    sound = [best for (_, best), bar in zip(found, bars, strict=True) if best is not None and bar.sound]
    return _compared(group, question, levels, Tile(question.title, _scope(group, levels), bars), sound)


def _levels(group: Group, question: Question) -> tuple[float, ...]:
    """The loads to compare at: those that the same engines ran believably, as many engines as there are for any load.

    One that ran another load alone would win by its load; one without a believable run takes no load from the others.
    Where no two engines can be compared, the loads that all ran.
    """
    telling = [engine for engine in group.engines
               if any(question.value(run.summary) is not None for run in engine.runs)]
    sound = {level: {engine.index for engine in telling if any(run.believable for run in group.at(engine, level))}
             for level in group.levels}
    most = max(group.levels, key=lambda level: (len(sound[level]), level))
    if len(sound[most]) >= min(2, len(group.engines)):
        return tuple(level for level in group.levels if sound[level] >= sound[most])
    common = group.common_levels
    least = max((len(sound[level]) for level in common), default=0)
    return tuple(level for level in common if len(sound[level]) == least)


def _best(group: Group, engine: Engine, levels: Sequence[float], question: Question) -> _Best | None:
    """Of repeats the median: the best of them grows with their number."""
    found = []
    for level in levels:
        runs = tuple(run for run in believed(group.at(engine, level)) if question.value(run.summary) is not None)
        if runs:
            found.append(_Best(engine, median(question.value(run.summary) or 0.0 for run in runs), runs))
    return (max if question.higher_is_better else min)(found, key=lambda best: best.value) if found else None


def _bar(
    group: Group, engine: Engine, best: _Best | None, levels: Sequence[float], question: Question, longest: float
) -> Bar:
    absent = [level for level in levels if not group.at(engine, level)]
    if best is None:
        told = any(question.value(run.summary) is not None for run in engine.runs)
        return Bar(engine, "–", None, f"not run {_at(group, absent)}" if told and absent else NOT_TOLD, sound=False)
    fraction = best.value / longest if longest > 0 else 0.0
    bound = any(question.bound(run.summary) for run in best.runs)
    text = f"{'≤ ' if bound else ''}{question.show(best.value)}"
    doubted = [level for level in levels if not all(run.believable for run in believed(group.at(engine, level)))]
    if doubted or absent:
        notes = [DOUBTED if len(doubted) == len(levels) else f"{DOUBTED} {_at(group, doubted)}"] if doubted else []
        return Bar(engine, text, fraction, "; ".join([*notes, *([f"not run {_at(group, absent)}"] if absent else [])]),
                   sound=False)
    return Bar(engine, text, fraction, AT_MOST if bound else "", sound=not bound)


def _scope(group: Group, levels: Sequence[float]) -> str:
    if len(levels) == 1:
        return _at(group, levels)
    if tuple(levels) == group.levels:
        return "best over all loads"
    return f"best over {listed([group.load_text(level) for level in levels])}"


def _at(group: Group, levels: Sequence[float]) -> str:
    return f"at {listed([group.load_text(level) for level in levels])}"


def _compared(group: Group, question: Question, levels: Sequence[float], tile: Tile, known: Sequence[_Best]) -> Tile:
    """`tile` with the best set against the worst, where there are two that have a ratio."""
    ordered = sorted(known, key=lambda one: one.value, reverse=question.higher_is_better)
    if len(ordered) < 2:
        return tile
    best, worst = ordered[0], ordered[-1]
    sides = (best, worst) if question.higher_is_better else (worst, best)
    found = versus(sides[0].runs, sides[1].runs, question)
    if found is None:
        return tile
    against = f"({question.show(best.value)} against {question.show(worst.value)}; {found.basis})"
    pair = f"{best.engine.name} and {worst.engine.name}"
    if found.alike:
        factor, winner = "≈ 1×", "about the same"
        claim = f"{pair} are within 3 % of each other in {question.noun} {against}"
    elif not found.told or found.factor < 1:
        factor, winner = "not told", f"{ratio(found.factor)}, which may be chance"
        claim = f"{pair} are not told apart in {question.noun} {against}"
    else:
        factor, winner = ratio(found.factor), f"{question.short} {best.engine.name}"
        claim = (question.claim.format(best=best.engine.name, factor=factor, worst=worst.engine.name) + f" {against}")
    each = _each(group, question, levels, sides)
    return Tile(tile.title, tile.scope, tile.bars, factor, winner, claim, found.basis, each)


def _each(group: Group, question: Question, levels: Sequence[float], sides: tuple[_Best, _Best]) -> str:
    """The factor at each of several loads: the best over them hides where the other leads."""
    if len(levels) < 2:
        return ""
    one, other = (side.engine for side in sides)
    found = [(level, versus(believed(group.at(one, level)), believed(group.at(other, level)), question))
             for level in levels]
    return ", ".join(f"{ratio(one.factor)} at {group.load_text(level)}" for level, one in found if one is not None)
