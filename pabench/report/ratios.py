"""Every engine against the first, load by load: what the best over all loads hides."""

from __future__ import annotations

from collections.abc import Sequence

from pabench.report.groups import Engine, Group, RunData, believed
from pabench.report.questions import QUESTIONS, Question
from pabench.report.tables import Cell, Column, Table, table, words
from pabench.report.text import DOUBTED, ratio, visible
from pabench.report.versus import Versus, versus


def ratios_table(group: Group) -> Table | None:
    """The ratios to the first engine with believable runs; None where no engine can be set against it."""
    first = next((engine for engine in group.engines if any(run.believable for run in engine.runs)), None)
    if first is None:
        return None
    made = [(engine, question, [_cell(group, engine, first, level, question) for level in group.levels])
            for engine in group.engines if engine is not first for question in QUESTIONS]
    rows = [[words(engine.name, engine=engine.index), words(_title(question)), *cells]
            for engine, question, cells in made if not all(cell.unknown for cell in cells)]
    columns = [Column("engine", "Engine", numeric=False), Column("figure", "Figure", numeric=False),
               *(Column(f"at_{level:g}", group.load_text(level), numeric=False) for level in group.levels)]
    caption = f"Each load by itself: ratios to {visible(first.name)}"
    return table(f"ratios-{group.index}", caption, columns, rows) if rows else None


def _title(question: Question) -> str:
    return question.title if question.higher_is_better else f"{question.title} (less is better)"


def _cell(group: Group, engine: Engine, first: Engine, level: float, question: Question) -> Cell:
    one, other = (believed(group.at(each, level)) for each in (engine, first))
    found = versus(one, other, question)
    if found is None:
        return words("", hint="not run, or not told, by both" if one and other else "not run by both")
    if not all(run.believable for run in (*one, *other)):
        return words("not valid", "muted", f"{DOUBTED}: no ratio")
    return words(_text(found, [*one, *other], question), "" if found.told else "muted",
                 f"{found.basis}{'' if found.told else ': may be chance'}")


def _text(found: Versus, runs: Sequence[RunData], question: Question) -> str:
    bound = any(question.bound(run.summary) for run in runs)
    text = f"{ratio(found.factor)}{' (a bound)' if bound else ''}"
    return f"{text} ({found.basis})" if found.interval is not None or not found.told else text
