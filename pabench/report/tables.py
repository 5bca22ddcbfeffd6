"""Tables: what is shown, and the CSV of the same rows with full precision."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pabench.engines.cleaning import no_formula
from pabench.report.text import visible
from pabench.telemetry.vocabulary import UNKNOWN

Raw = str | float | int | None


@dataclass(frozen=True, slots=True)
class Column:
    """`key` heads the CSV (with unit), `title` and `unit` the page."""

    key: str
    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """`text` is shown, `raw` goes to the CSV. `tone`: "", "good", "bad" or "muted". `engine`: its key is drawn.

    `href` is a place in the page that the text leads to.
    """

    text: str
    raw: Raw = None
    tone: str = ""
    hint: str = ""
    engine: int | None = None
    href: str = ""

    @property
    def unknown(self) -> bool:
        """Whether this is shown as a dash."""
        return self.text == UNKNOWN


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page. `flip`: shown with the columns as rows; its CSV has one row a row all the same.

    `doubted`: which rows are of runs that may not be believed. `unseen`: columns of the CSV alone, by key.
    """

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    flip: bool = False
    doubted: frozenset[int] = frozenset()
    unseen: Mapping[str, Sequence[Raw]] = field(default_factory=dict)

    @property
    def csv(self) -> str:
        """RFC 4180 text. What is not known is an empty field."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(_field(key) for key in (*(column.key for column in self.columns), *self.unseen))
        for row, *unseen in zip(self.rows, *self.unseen.values(), strict=True):
            writer.writerow(_field(raw) for raw in (*(cell.raw for cell in row), *unseen))
        return out.getvalue()

    @property
    def csv_uri(self) -> str:
        """The CSV as a data: address, so that the page needs neither network nor script to hand it out."""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(self.csv.encode()).decode()


def words(text: str, tone: str = "", hint: str = "", engine: int | None = None) -> Cell:
    """Text; a dash where there is none."""
    return Cell(visible(text) or UNKNOWN, text, tone, hint, engine)


def table(
    id: str, caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, flip: bool = False,
    doubted: Iterable[int] = (), unseen: Mapping[str, Sequence[Raw]] | None = None,
) -> Table:
    """A table, checked to be rectangular."""
    made = tuple(tuple(row) for row in rows)
    if any(len(row) != len(columns) for row in made):
        raise ValueError(f"table {id}: rows of {sorted({len(row) for row in made})} cells, {len(columns)} columns")
    return Table(id, caption, tuple(columns), made, flip, frozenset(doubted), unseen or {})


def _field(raw: Raw) -> str | float:
    """One CSV field; a number stays one."""
    if isinstance(raw, str):
        return no_formula(visible(raw))
    return "" if raw is None else raw
