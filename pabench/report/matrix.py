"""Where correctness stands: requirements by engines, each failure's text, and wrong answers with their diagnosis."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from pabench.conformance import Outcome, RequirementVerdict, load_registry
from pabench.conformance.levels import SUITE_LEVELS
from pabench.conformance.verdicts import NOT_CONFORMING, by_requirement
from pabench.report.groups import Engine
from pabench.report.tables import Cell, Column, Table, table, words
from pabench.report.text import count, visible
from pabench.telemetry.vocabulary import UNKNOWN

SHOWN_DIAGNOSES = 12  # of each run

_BAD = NOT_CONFORMING | {Outcome.XPASS, Outcome.ERROR}
_TOLD = _BAD | {Outcome.XFAIL}  # what has a failure text


@dataclass(frozen=True, slots=True)
class Failure:
    """One case that did not pass, whole. `text` and `reason` are hostile."""

    id: str  # its place in the page
    engine: Engine
    name: str
    level: str
    outcome: Outcome
    reason: str
    text: str
    replay: str

    @property
    def tone(self) -> str:
        """ "bad"; "muted" where it was expected."""
        return "bad" if self.outcome in _BAD else "muted"


@dataclass(frozen=True, slots=True)
class WrongAnswers:
    """The wrong answers of one run, as diagnosed."""

    engine: Engine
    load: str
    place: str
    wrong_tokens: int
    wrong_requests: int
    texts: tuple[str, ...]


def matrices(engines: Sequence[Engine], older: Set[tuple[str, str]] = frozenset()) -> list[Table]:
    """A table a level of the suite: requirements as rows, engines that were asked any of them as columns, "outcome
    passed/asked/all" in a cell that leads to its first failure. `older`: see conformance.comparable.
    """
    checked = [engine for engine in engines if engine.suites]
    cells = {engine.index: {v.requirement: v for v in _verdicts(engine)} for engine in checked}
    asked = {name: verdict for found in cells.values() for name, verdict in found.items()}
    known = load_registry().requirements
    ordered = [name for name in known if name in asked] + [name for name in asked if name not in known]
    places = _places(failures(checked))
    made: list[Table] = []
    for level in dict.fromkeys([*SUITE_LEVELS, *map(_level, ordered)]):
        of_level = [name for name in ordered if _level(name) == level]
        shown = [engine for engine in checked if cells[engine.index].keys() & set(of_level)]
        rows = [
            [words(name, hint=known[name].text if name in known else ""), words(asked[name].level),
             *(_cell(cells[engine.index].get(name), places.get((engine.index, name), "")) for engine in shown)]
            for name in of_level
        ]
        if rows:
            columns = [Column("requirement", "Requirement", numeric=False), Column("level", "Level", numeric=False)]
            columns += [Column(visible(engine.name), _title(engine, level, older), numeric=False) for engine in shown]
            caption = f"Level {visible(level)}: outcome and cases passed / asked / all"
            made.append(table(f"matrix-{len(made)}", caption, columns, rows))
    return made


def failures(engines: Sequence[Engine]) -> list[Failure]:
    """Every case that failed, crashed, timed out, passed or failed as an expectation speaks of, or could not be
    judged.
    """
    found = [(engine, row) for engine in engines for suite in engine.suites for row in suite.results.rows
             if row.outcome in _TOLD]
    return [
        Failure(f"failure-{place}", engine, row.name, row.level, row.outcome, visible(row.reason), visible(row.text),
                row.replay)
        for place, (engine, row) in enumerate(found)
    ]


def wrong_answers(engines: Sequence[Engine]) -> list[WrongAnswers]:
    """Runs with wrong answers, and the first few diagnoses of each."""
    found = []
    for engine in engines:
        for run in engine.runs:
            wrong = run.summary.outcomes.get("wrong", 0)
            if wrong or run.summary.wrong_tokens:
                texts = tuple(visible(text) for text in run.summary.diagnoses[:SHOWN_DIAGNOSES])
                tokens = run.summary.wrong_tokens or 0
                found.append(WrongAnswers(engine, run.summary.load, run.place, tokens, wrong, texts))
    return found


def _title(engine: Engine, level: str, older: Set[tuple[str, str]]) -> str:
    is_older = any((suite.place, level) in older for suite in engine.suites)
    return visible(engine.name) + (" (older suite)" if is_older else "")


def _level(requirement: str) -> str:
    return requirement.partition("/")[0]


def _verdicts(engine: Engine) -> list[RequirementVerdict]:
    return by_requirement(row for suite in engine.suites for row in suite.results.rows)


def _places(told: Sequence[Failure]) -> dict[tuple[int, str], str]:
    """Engine and requirement -> where its worst failure stands in the page."""
    severity = list(Outcome)
    ordered = sorted(told, key=lambda failure: severity.index(failure.outcome), reverse=True)
    return {(failure.engine.index, failure.name.partition("[")[0]): failure.id for failure in ordered}


def _cell(verdict: RequirementVerdict | None, place: str) -> Cell:
    if verdict is None:
        return Cell(UNKNOWN, None, "muted", "not in this engine's profile")
    counts = f"{count(verdict.passed)}/{count(verdict.asked)}/{count(verdict.total)}"
    tone = "good" if verdict.outcome is Outcome.PASS else "bad" if verdict.outcome in _BAD else "muted"
    text = f"{verdict.outcome} {counts}"
    return Cell(text, text, tone, visible(verdict.reason), href=f"#{place}" if place else "")
