"""What engines are, in the terminal. Engine-supplied text is cleaned."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pabench.engines.cleaning import clean
from pabench.engines.doctor import Examination
from pabench.telemetry.vocabulary import NOT_APPLICABLE, UNKNOWN


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
        "metrics move": f"up to {examination.cadence_s:g} s late, when idle" if examination.cadence_s else "at once",
        NOT_APPLICABLE: ", ".join(examination.not_applicable) or UNKNOWN,
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
