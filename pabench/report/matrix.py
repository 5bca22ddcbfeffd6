"""Where correctness stands: requirements by engines, each failure's text, and wrong answers with their diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pabench.conformance import Outcome, RequirementVerdict, load_registry
from pabench.conformance.verdicts import NOT_CONFORMING, by_requirement
from pabench.report.groups import Engine
from pabench.report.tables import Cell, Column, Table, table, words
from pabench.report.text import UNKNOWN, count, visible

SHOWN_DIAGNOSES = 12  # of each run

_GOOD = {Outcome.PASS}
_BAD = NOT_CONFORMING | {Outcome.XPASS, Outcome.ERROR}


@dataclass(frozen=True, slots=True)
class Failure:
    """One case that did not pass, whole. `text` and `reason` are hostile."""

    engine: Engine
    name: str
    level: str
    outcome: str
    reason: str
    text: str
    replay: str


@dataclass(frozen=True, slots=True)
class WrongAnswers:
    """The wrong answers of one run, as diagnosed."""

    engine: Engine
    load: str
    place: str
    wrong_tokens: int
    wrong_requests: int
    texts: tuple[str, ...]


def matrix(engines: Sequence[Engine]) -> Table | None:
    """Requirements as rows, engines as columns, "outcome passed/claimed/total" in a cell; None without results."""
    checked = [engine for engine in engines if engine.suites]
    if not checked:
        return None
    cells = {engine.index: {v.requirement: v for v in _verdicts(engine)} for engine in checked}
    requirements = list(dict.fromkeys(name for found in cells.values() for name in found))
    known = load_registry().requirements
    rows = []
    for name in requirements:
        found = [cells[engine.index].get(name) for engine in checked]
        level = next(verdict.level for verdict in found if verdict is not None)
        what = known[name].text if name in known else ""
        rows.append([words(name, hint=what), words(level), *(_cell(verdict) for verdict in found)])
    columns = [Column("requirement", "Requirement", numeric=False), Column("level", "Level", numeric=False)]
    columns += [Column(visible(engine.name), visible(engine.name), numeric=False) for engine in checked]
    return table("matrix", "Conformance: outcome and cases passed / claimed / total", columns, rows)


def failures(engines: Sequence[Engine]) -> list[Failure]:
    """Every case that failed, crashed, timed out, passed against expectation, or could not be judged."""
    return [
        Failure(engine, row.name, row.level, row.outcome.value, visible(row.reason), visible(row.text), row.replay)
        for engine in engines
        for suite in engine.suites
        for row in suite.results.rows
        if row.outcome in _BAD
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


def _verdicts(engine: Engine) -> list[RequirementVerdict]:
    return by_requirement(row for suite in engine.suites for row in suite.results.rows)


def _cell(verdict: RequirementVerdict | None) -> Cell:
    if verdict is None:
        return Cell(UNKNOWN, None, "muted", "not in this engine's profile")
    counts = f"{count(verdict.passed)}/{count(verdict.claimed)}/{count(verdict.total)}"
    tone = "good" if verdict.outcome in _GOOD else "bad" if verdict.outcome in _BAD else "muted"
    text = f"{verdict.outcome} {counts}"
    return Cell(text, text, tone, visible(verdict.reason))
