"""How runs were measured: what is the same for all of them once, what differs a row a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pabench.report.groups import Engine, RunData
from pabench.report.tables import Cell, Column, Table, table, words

# Shown elsewhere, or of no use to a reader. A hundred numbers in a cell make a row taller than a page: the median, p99
# and the largest lag stand beside them.
_LEFT_OUT = frozenset({"schema_version", "label", "outcomes", "duration_s", "window_s", "zero_at",
                       "validity", "client.loop_lag_percentiles_ms"})
_DEPTH = 2  # deeper parts of the manifest are told in one line


def conditions(engines: Sequence[Engine]) -> tuple[Table | None, Table | None]:
    """(same for all runs, differing by run); either is None where it would be empty."""
    runs = [(engine, run) for engine in engines for run in engine.runs]
    if not runs:
        return None, None
    told = [_told(run) for _, run in runs]
    keys = list(dict.fromkeys(key for found in told for key in found))
    same = [key for key in keys if len({found.get(key, "") for found in told}) == 1]
    differing = [key for key in keys if key not in same]
    return _common(same, told[0]), _differing(differing, runs, told)


def _common(keys: Sequence[str], told: Mapping[str, str]) -> Table | None:
    rows = [[words(_title(key)), _cell(told.get(key, ""))] for key in keys]
    columns = [Column("what", "What", numeric=False), Column("value", "Value", numeric=False)]
    return table("same", "The same for every run", columns, rows) if rows else None


def _differing(
    keys: Sequence[str], runs: Sequence[tuple[Engine, RunData]], told: Sequence[Mapping[str, str]]
) -> Table | None:
    columns = [Column("engine", "Engine", numeric=False), Column("load", "Load", numeric=False)]
    columns += [Column(key, _title(key), numeric=False) for key in keys]
    rows: list[list[Cell]] = []
    for (engine, run), found in zip(runs, told, strict=True):
        head = [words(engine.name, engine=engine.index), words(run.summary.load)]
        rows.append(head + [_cell(found.get(key, "")) for key in keys])
    return table("differing", "What differs from run to run", columns, rows, flip=len(rows) <= 4)


def _cell(text: str) -> Cell:
    return words(text, hint="" if text else "not set, or not told")


def _told(run: RunData) -> dict[str, str]:
    """The manifest as flat texts, and what the summary says about validity. Empty: not told."""
    dumped = _flat(run.manifest.model_dump(mode="json"), "")
    told = {key: text for key, text in dumped.items() if key.split(".")[0] not in _LEFT_OUT and key not in _LEFT_OUT}
    validity = "valid" if run.summary.validity.valid else "; ".join(run.summary.validity.reasons)
    return {"validity": validity} | told | {"folder": run.place}


def _flat(value: Any, key: str) -> dict[str, str]:
    if isinstance(value, Mapping) and _depth(key) < _DEPTH:
        flat: dict[str, str] = {}
        for inner, found in value.items():
            flat |= _flat(found, f"{key}.{inner}" if key else str(inner))
        return flat
    return {key: _text(value, key)}


def _depth(key: str) -> int:
    """How many names deep `key` stands; versions are told on one line."""
    return _DEPTH if key == "versions" else key.count(".") + bool(key)


def _text(value: Any, key: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_text(found, '') or 'none'}" for name, found in value.items())
    if isinstance(value, list):
        parts = [_text(part, key) for part in value]
        return shlex.join(parts) if key == "command" else ", ".join(parts)
    return str(value)


def _title(key: str) -> str:
    return key.replace(".", " · ").replace("_", " ")
