"""How runs were measured: what is the same for all of them once, what differs by engine or by run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from pabench.report.groups import Engine, RunData
from pabench.report.tables import Cell, Column, Table, table, words
from pabench.report.text import count, fingerprint, number

# Shown elsewhere, or of no use to a reader. A hundred numbers in a cell make a row taller than a page: the median, p99
# and the largest lag stand beside them.
_LEFT_OUT = frozenset({"schema_version", "label", "outcomes", "duration_s", "window_s", "zero_at",
                       "validity", "client.loop_lag_percentiles_ms"})
_CLIENT = ("client", "calibration")  # what the client says of itself
_ENGINE = Column("engine", "Engine", numeric=False)
_DEPTH = 2  # deeper parts of the manifest are told in one line


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, and what its manifest tells."""

    engine: Engine
    run: RunData
    told: Mapping[str, str]


def conditions(engines: Sequence[Engine]) -> tuple[Table | None, tuple[Table, ...]]:
    """(same for all runs, what differs: by engine, by run, and how the client kept up); without what would be empty."""
    runs = [_Run(engine, run, _told(run)) for engine in engines for run in engine.runs]
    if not runs:
        return None, ()
    keys = list(dict.fromkeys(key for run in runs for key in run.told))
    same = [key for key in keys if len({run.told.get(key, "") for run in runs}) == 1]
    client = [key for key in keys if key not in same and key.split(".")[0] in _CLIENT]
    rest = [key for key in keys if key not in same and key not in client]
    by_engine = [key for key in rest if _is_of_engine(key, runs)]
    by_run = [key for key in rest if key not in by_engine]
    found = (_by_engine(by_engine, runs), _by_run("differing", "What differs from run to run", by_run, runs),
             _by_run("client", "How well the client kept up", client, runs))
    return _common(same, runs[0].told), tuple(made for made in found if made is not None)


def _is_of_engine(key: str, runs: Sequence[_Run]) -> bool:
    told: dict[int, set[str]] = {}
    for run in runs:
        told.setdefault(run.engine.index, set()).add(run.told.get(key, ""))
    return all(len(values) == 1 for values in told.values())


def _common(keys: Sequence[str], told: Mapping[str, str]) -> Table | None:
    rows = [[words(" ".join(_head(key))), _cell(key, told.get(key, ""))] for key in keys]
    columns = [Column("what", "What", numeric=False), Column("value", "Value", numeric=False)]
    return table("same", "The same for every run", columns, rows) if rows else None


def _by_engine(keys: Sequence[str], runs: Sequence[_Run]) -> Table | None:
    """Engines as columns: a run of each tells for all."""
    firsts = {run.engine.index: run for run in reversed(runs)}
    rows = [[words(run.engine.name, engine=index), *(_cell(key, run.told.get(key, "")) for key in keys)]
            for index, run in sorted(firsts.items())]
    columns = [_ENGINE, *(Column(key, *_head(key), numeric=False) for key in keys)]
    return table("engines", "What differs from engine to engine", columns, rows, flip=True) if keys else None


def _by_run(id: str, caption: str, keys: Sequence[str], runs: Sequence[_Run]) -> Table | None:
    """Figures are a column of numbers; a version or a fingerprint is none, though it may look like one."""
    numeric = {key for key in keys if key.split(".")[0] in (*_CLIENT, "workload")
               and all(_is_number(run.told.get(key) or "0") for run in runs)}
    rows = [[words(run.engine.name, engine=run.engine.index), words(run.run.summary.load),
             *(_number(run.told.get(key, "")) if key in numeric else _cell(key, run.told.get(key, "")) for key in keys)]
            for run in runs]
    columns = [_ENGINE, Column("load", "Load", numeric=False),
               *(Column(key, *_head(key), numeric=key in numeric) for key in keys)]
    return table(id, caption, columns, rows) if keys else None


def _cell(key: str, text: str) -> Cell:
    """What is too long to be read is cut, and whole in the CSV."""
    return replace(words(_shown(key, text), hint=("" if text else "not set, or not told")), raw=text)


def _number(text: str) -> Cell:
    return Cell(count(float(text)), float(text)) if text else _cell("", "")


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _shown(key: str, text: str) -> str:
    """`text` of `key` as a person reads it."""
    if key.endswith("_at") and text:
        return f"{text[:10]} {text[11:19]} UTC"
    if key.endswith("_bytes") and _is_number(text):
        return f"{number(float(text) / (1 << 30))} GiB"
    if key in ("schedule_digest", "git_commit"):
        return fingerprint(text)
    return text


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
        return "not calibrated" if key == "calibration" else ""
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


def _head(key: str) -> tuple[str, str]:
    """(title, unit)."""
    bare = key.removeprefix("client.").removesuffix("_bytes")
    unit = next((unit for unit in ("ms", "s") if bare.endswith(f"_{unit}")), "")
    return bare.removesuffix(f"_{unit}").replace(".", " · ").replace("_", " "), unit
