"""What engines are, and what mutants came to. Engine-supplied text is cleaned."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pabench.analysis.tables import UNKNOWN
from pabench.conformance.kills import Kill, Question, cell, kill_table
from pabench.conformance.levels import SUITE_LEVELS
from pabench.engines.cleaning import WHOLE, clean
from pabench.engines.doctor import Examination
from pabench.terminal.live import console


def show_examination(examination: Examination, url: str) -> None:
    """What `doctor` found, as a table on stdout."""
    facts, kv = examination.facts, examination.facts.kv
    rows = {
        "engine": f"{facts.dialect} {facts.version or ''}".strip(),
        "model": facts.model,
        "KV probe": examination.probe.preset if examination.probe else "no: answers cannot be verified",
        "longest sequence": _tokens(facts.max_context_tokens),
        "block size": _tokens(kv.block_size if kv else None),
        "blocks": _number(kv.num_blocks if kv else None),
        "KV capacity": _tokens(kv.capacity_tokens if kv else None),
        "prefix caching": {True: "on", False: "off", None: UNKNOWN}[kv.prefix_caching if kv else None],
        "can": ", ".join(sorted(facts.capabilities)) or UNKNOWN,
        "metrics": "\n".join(examination.metrics_found) or "none that pabench knows",
        "notes": "\n".join(examination.notes) or UNKNOWN,
    }
    table = Table(title=f"What is at {escape(url)}", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape("\n".join(clean(line) for line in value.splitlines())))
    Console(highlight=False).print(table)


def _tokens(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,} tokens"


def _number(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


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
