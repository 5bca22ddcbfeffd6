"""The view-model: everything that the template shows, decided and worded; the template only lays it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pabench
from pabench.capacity import Search
from pabench.report.alike import cautions
from pabench.report.capacity_view import capacity_figures, conclusions, searches_of, tried_tables
from pabench.report.conditions import conditions
from pabench.report.feel_figures import feel_figures
from pabench.report.figures import Figure
from pabench.report.findings import GateView, claims_table, gate_view
from pabench.report.groups import Engine, Group, sort_engines, sort_groups
from pabench.report.headline import Tile, memory_sentence, sentences, tiles, why_nothing
from pabench.report.load_figures import load_figures
from pabench.report.matrix import Failure, WrongAnswers, failures, matrices, wrong_answers
from pabench.report.memory_figures import memory_at_level, memory_by_load
from pabench.report.ratios import ratios_table
from pabench.report.run_tables import all_table, failed_table, key_table
from pabench.report.slowest_figures import slowest_figures
from pabench.report.sources import Sources
from pabench.report.strip import Card, cards
from pabench.report.tables import Table
from pabench.report.text import visible


@dataclass(frozen=True, slots=True)
class Pane:
    """The figures of one load of one group; one pane of a group is in sight at a time."""

    id: str
    title: str
    shown: bool
    feel: tuple[Figure, ...]
    memory: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class GroupView:
    """One workload, compared."""

    group: Group
    title: str
    tiles: tuple[Tile, ...]
    sentences: tuple[str, ...]
    nothing: str    # why there are none
    memory_sentence: str
    ratios: Table | None
    load: tuple[Figure, ...]
    capacity: Table | None
    tried: tuple[Table, ...]
    memory: tuple[Figure, ...]
    panes: tuple[Pane, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """The whole report."""

    title: str
    built_at: str
    version: str
    engines: tuple[Engine, ...]
    cards: tuple[Card, ...]
    groups: tuple[GroupView, ...]
    runs: Table | None
    figures: Table | None
    matrices: tuple[Table, ...]
    failures: tuple[Failure, ...]
    wrong_answers: tuple[WrongAnswers, ...]
    failed: Table | None            # why requests failed
    unverified: tuple[str, ...]     # engines whose answers no oracle checked
    unchecked: tuple[str, ...]      # engines without a conformance result
    gates: tuple[GateView, ...]
    claims: Table | None
    same: Table | None
    differing: tuple[Table, ...]
    problems: tuple[str, ...]
    cautions: tuple[str, ...]       # why what is set side by side may not be alike

    def all_figures(self) -> Iterator[Figure]:
        """Every figure of the page, in order."""
        for view in self.groups:
            yield from (*view.load, *view.memory)
            for pane in view.panes:
                yield from (*pane.feel, *pane.memory)


def make_page(sources: Sources) -> Page:
    """The page of what was read."""
    engines = sort_engines(sources.runs, sources.suites)
    same, differing = conditions(engines)
    groups = sort_groups(engines)
    problems = (*sources.problems, *_without_runs(groups, sources.searches))
    return Page(
        title=" · ".join(visible(engine.name) for engine in engines),
        built_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=pabench.__version__,
        engines=engines,
        cards=tuple(cards(engines)),
        groups=tuple(_group_view(group, sources.searches) for group in groups),
        runs=key_table(engines) if sources.runs else None,
        figures=all_table(engines) if sources.runs else None,
        matrices=tuple(matrices(engines)),
        failures=tuple(failures(engines)),
        wrong_answers=tuple(wrong_answers(engines)),
        failed=failed_table(engines),
        unverified=tuple(e.name for e in engines if all(r.summary.verified_tokens is None for r in e.runs)),
        unchecked=tuple(e.name for e in engines if not e.suites),
        gates=tuple(gate_view(found, number) for number, found in enumerate(sources.decisions)),
        claims=claims_table(sources.claims),
        same=same,
        differing=differing,
        problems=tuple(visible(problem) for problem in problems),
        cautions=tuple(visible(caution) for caution in cautions(engines)),
    )


def _without_runs(groups: Sequence[Group], searches: Sequence[Search]) -> Iterator[str]:
    """Searches that no group shows."""
    for search in searches:
        if not any(searches_of(group, [search]) for group in groups):
            yield f"the search for the capacity of {search.label} under {search.workload}: none of its runs is here"


def _group_view(group: Group, searches: Sequence[Search]) -> GroupView:
    searched = searches_of(group, searches)
    made = tiles(group)
    memory = memory_by_load(group)
    shown = (group.common_levels or group.levels)[-1]
    return GroupView(
        group=group,
        title=f"{visible(group.workload)} ({visible(group.shape)})",
        tiles=tuple(made),
        sentences=tuple(sentences(made)),
        nothing=why_nothing(group),
        memory_sentence=memory_sentence(group),
        ratios=ratios_table(group),
        load=(*capacity_figures(group, searched), *load_figures(group)),
        capacity=conclusions(group, searched),
        tried=tuple(tried_tables(group, searched)),
        memory=tuple(memory),
        panes=tuple(_pane(group, level, level == shown) for level in group.levels),
        notes=tuple(_notes(group, memory)),
    )


def _pane(group: Group, level: float, shown: bool) -> Pane:
    return Pane(
        id=f"{group.index}-{group.levels.index(level)}",
        title=group.load_text(level),
        shown=shown,
        feel=(*feel_figures(group, level), *slowest_figures(group, level)),
        memory=tuple(memory_at_level(group, level)),
    )


def _notes(group: Group, memory: list[Figure]) -> Iterator[str]:
    """What the memory section cannot show, and why."""
    told = {figure.id.split("-")[0] for figure in memory}
    for key, what in (("held", "sequences held at once"), ("utilisation", "effective utilisation")):
        if key not in told:
            yield f"No figure of {what}: no engine here tells what it takes."
    summaries = [run.summary for engine in group.engines for run in engine.runs]
    if all(summary.waste is None for summary in summaries):
        yield "No split of waste: no engine here tells the state of its slots."
    if "prefix" not in told:
        yield "No figure of prefix hits: no engine here tells of a look-up in a prefix cache."
    if "preemptions" not in told:
        known = [summary for summary in summaries if summary.preemptions is not None]
        if all("preemptions" in summary.not_applicable for summary in summaries):
            yield "Preemptions: none of these engines can have any."
        else:
            yield "No preemption in any run that tells them." if known else "Preemptions: told by no engine here."
