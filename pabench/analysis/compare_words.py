"""A comparison as a table for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pabench.analysis.compare import Compared
from pabench.engines.cleaning import clean, markdown
from pabench.telemetry.vocabulary import UNKNOWN

_ALPHA = 0.05
_BASIS = {"pairs": "", "runs": "", "within": " ¹"}
FOOTNOTE = "¹ of one run a side: how runs differ is not in the interval; measure several, as `pabench gate run` does"


def compared_rows(found: Sequence[Compared], first_name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a figure and load, one column a set; engine-supplied text is cleaned."""
    sets = list(dict.fromkeys(each.set_name for each in found))
    rows: dict[tuple[str, str], list[str]] = {}
    for each in found:
        row = rows.setdefault((each.load, each.metric), [f"{each.first:,.4g}", *([UNKNOWN] * len(sets))])
        row[1 + sets.index(each.set_name)] = compared_text(each)
    header = ["load", "metric", first_name, *sets]
    return [clean(name) for name in header], [[clean(load), metric, *row] for (load, metric), row in rows.items()]


def compared_text(each: Compared) -> str:
    """Value, ratio, interval; a star where the sets surely differ."""
    star = "*" if each.p is not None and each.p < _ALPHA else ""
    invalid = " INVALID" if not each.valid else ""
    interval = "" if each.interval is None else f" ({each.interval[0]:.3f}–{each.interval[1]:.3f})"
    return f"{each.value:,.4g}  ×{each.ratio:.3f}{interval}{star}{_BASIS[each.basis]}{invalid}"


def compared_table(found: Sequence[Compared], first_name: str) -> Table:
    """For the terminal; a load that is the only one is the title."""
    header, rows = compared_rows(found, first_name)
    skip = 1 if len({row[0] for row in rows}) == 1 else 0
    table = Table(title=Text(rows[0][0]) if skip else None, title_justify="left")
    for name in header[skip:]:
        table.add_column(Text(name), justify="left" if name in ("load", "metric") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[skip:]))
    return table


def compared_notes(found: Sequence[Compared]) -> list[str]:
    """What a reader must know to read the table."""
    notes = ["× ratio to the first (95 % interval)"]
    if any(each.p is not None for each in found):
        notes.append(f"* differs: p < {_ALPHA} after Holm's correction over the whole table")
    if any(each.basis == "within" for each in found):
        notes.append(FOOTNOTE)
    return notes


def compared_markdown(found: Sequence[Compared], first_name: str) -> str:
    """For a pull request."""
    header, rows = compared_rows(found, first_name)
    lines = [f"| {' | '.join(map(markdown, header))} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(map(markdown, row))} |" for row in rows]
    return "\n".join([*lines, "", *compared_notes(found)]) + "\n"
