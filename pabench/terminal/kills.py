"""What killed the mutants, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pabench.conformance.kills import Kill, Question, cell, kill_table
from pabench.conformance.levels import SUITE_LEVELS
from pabench.engines.cleaning import WHOLE, clean
from pabench.terminal.live import console


def show_kill(place: int, count: int, question: Question, kill: Kill) -> None:
    """One answer of `pabench mutants` as it comes, on stderr."""
    style = "green" if kill.good else "red"
    console().print(f"{place:3}/{count} [{style}]{kill.outcome}[/{style}] {question.mutant.name} at {question.level} "
                    f"({kill.duration_s:.1f} s)")


def show_kills(kills: Sequence[Kill]) -> None:
    """The table of mutants by levels, on stdout."""
    shown = Table(title="What killed the mutants", title_justify="left")
    for title in ("mutant", *SUITE_LEVELS):
        shown.add_column(title, overflow="fold")
    for row in kill_table(kills):
        shown.add_row(*(escape(clean(text, WHOLE)) for text in row))
    out = Console(highlight=False)
    out.print(shown)
    bad = [kill for kill in kills if not kill.good]
    out.print(f"{len(kills) - len(bad)} of {len(kills)} as they must be")
    for kill in bad:
        out.print(f"{escape(kill.mutant)} at {kill.level}: {escape(clean(cell(kill), WHOLE))}")
