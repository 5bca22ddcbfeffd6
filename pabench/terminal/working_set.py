"""What a working set came to. Engine-supplied text is cleaned."""

from __future__ import annotations

from pathlib import Path

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pabench.engines.cleaning import WHOLE, clean
from pabench.telemetry.vocabulary import UNKNOWN
from pabench.workingset import Figure, WorkingSet


def show_working_set(found: WorkingSet, folder: Path, *, as_json: bool) -> None:
    """The figures, on stdout."""
    if as_json:
        print(orjson.dumps(found.to_json()).decode())
        return
    facts = found.examination.facts
    out = Console(highlight=False)
    table = Table(title=f"Measured from outside: {escape(clean(f'{facts.dialect} {facts.version or str()}'))}",
                  title_justify="left")
    for name in ("figure", "measured", "between", "stated", "ratio"):
        table.add_column(name, justify="left" if name == "figure" else "right", overflow="fold")
    for each in found.figures:
        table.add_row(f"{each.name}, {each.unit}", _measured(each), _between(each), _number(each.stated),
                      UNKNOWN if each.ratio is None else f"{each.ratio:.3f}")
    out.print(table)
    for each in found.figures:  # how, or why not
        if each.how:
            out.print(f"{each.name}: {escape(clean(each.how, WHOLE))}", style="dim")
    curve = sorted(found.curve, key=lambda each: each.tokens)
    if curve:
        out.print("hit curve: " + ", ".join(f"{each.tokens:,} tokens {each.hit_share:.0%}" for each in curve))
    checked = "not verified" if found.examination.probe is None else f"{found.wrong} wrong"
    out.print(f"{found.asked:,} answers, {checked}", style="red" if found.wrong else None)
    if not found.complete:
        out.print("broken off: what was found until then")
    out.print(f"records: {escape(str(folder))}")


def _measured(figure: Figure) -> str:
    if figure.value is None:
        return figure.state
    return ("at least " if figure.state == "at least" else "") + _number(figure.value)


def _between(figure: Figure) -> str:
    if figure.low is None or figure.low == figure.high:
        return UNKNOWN
    return f"{_number(figure.low)} and {'more' if figure.high is None else _number(figure.high)}"


def _number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:,.3g}"
