"""verdicts.jsonl: what a run of the suite found.

One JSON object a line: a header (what was asked of which engine), a row a case as it ends, and a footer (how many
rows there are, the exit code). A file whose run was cut short has no footer and is refused, and so is one of
another version of the specification: its rows would mean something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pabench.conformance.verdicts import Outcome, RequirementVerdict, Verdict, by_requirement
from pabench.errors import UsageError

FILE_NAME = "verdicts.jsonl"
SCHEMA_VERSION = 1
SPEC_VERSION = 2  # of the requirements that this version of pabench knows


@dataclass(frozen=True, slots=True)
class Header:
    """What was run, and against what. `engine` says what the engine told about itself: hostile, escape it."""

    spec_version: int
    pabench_version: str
    profile: str
    seed: int
    started: str                    # ISO 8601, UTC
    url: str                        # without user name and password
    engine: Mapping[str, Any] = field(default_factory=dict)  # dialect, model, version, kv, capabilities, probe
    smoke: str = "ok"               # "ok", or why the short ring sent before all else was wrong
    schema: int = SCHEMA_VERSION
    patience: float = 1.0           # by which the profile's limits of time were multiplied
    suite: str | None = None        # suite_digest, or "" where a part of the level was asked; None: not told yet then


@dataclass(frozen=True, slots=True)
class Footer:
    """How the run ended. `status` is "complete" or "interrupted"; of `duration_s`, `starting_s` was for the engine."""

    rows: int
    counts: Mapping[str, int]
    exit_code: int
    duration_s: float
    status: str = "complete"
    starts: int = 0                 # of the engine by the run, at first and after it had died
    starting_s: float = 0.0         # until it served, all together


@dataclass(frozen=True, slots=True)
class Results:
    """A whole verdicts.jsonl."""

    header: Header
    rows: list[Verdict]
    footer: Footer

    def by_requirement(self) -> list[RequirementVerdict]:
        """One verdict a requirement."""
        return by_requirement(self.rows)


def check_new(out: Path) -> None:
    """Raise UsageError where the folder holds results already: they are never written over."""
    if (out / FILE_NAME).exists():
        raise UsageError(f"{out} already holds a {FILE_NAME}: name a new folder, or remove that one")


def suite_digest(cases: Iterable[str], profile: str) -> str:
    """Of the names of all cases of a level, as one profile asks them: the same where results can be compared."""
    return hashlib.sha256("\n".join([profile, *sorted(cases)]).encode()).hexdigest()[:12]


class ResultsWriter:
    """Writes verdicts.jsonl line by line, so that a run cut short keeps what it found. A context manager.

    With `written`, the rows that stand there, it goes on behind them.
    """

    def __init__(self, path: Path, written: Iterable[Verdict] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # An engine's text may hold half a surrogate pair, which UTF-8 cannot: it must not end the run.
        self._file = path.open("w" if written is None else "a", encoding="utf-8", errors="replace")
        self._rows = list(written or ())

    def header(self, header: Header) -> None:
        """Write the first line."""
        self._write("header", asdict(header))

    def row(self, verdict: Verdict) -> None:
        """Write what became of one case."""
        self._rows.append(verdict)
        self._write("case", asdict(verdict))

    def footer(self, exit_code: int, duration_s: float, status: str, starts: tuple[int, float] = (0, 0.0)) -> Footer:
        """Write the last line, which makes the file a whole one."""
        counts = {outcome.value: 0 for outcome in Outcome}
        for row in self._rows:
            counts[row.outcome.value] += 1
        footer = Footer(len(self._rows), {k: n for k, n in counts.items() if n}, exit_code, duration_s, status,
                        *starts)
        self._write("footer", asdict(footer))
        return footer

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind} | values, ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def load_results(path: Path) -> Results:
    """Read a verdicts.jsonl, or the one in the folder `path`. Raises UsageError for all that is not a whole one."""
    path = path / FILE_NAME if path.is_dir() else path
    lines = _read_lines(path)
    if not lines or lines[0].get("kind") != "header":
        raise UsageError(f"{path} does not begin with a header: it is no result of `pabench conform`")
    _check_versions(path, lines[0])
    if lines[-1].get("kind") != "footer":
        raise UsageError(f"{path} has no footer: its run was cut short after {len(lines) - 1} rows; run it again")
    try:
        header = Header(**_without_kind(lines[0]))
        footer = Footer(**_without_kind(lines[-1]))
        rows = [_row(line) for line in lines[1:-1]]
        if not isinstance(header.engine, Mapping):
            raise ValueError(f"the header's engine is {header.engine!r}, expected an object")
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} has a line that does not fit schema {SCHEMA_VERSION}: {error}") from error
    if footer.rows != len(rows):
        raise UsageError(f"{path} holds {len(rows)} rows, its footer says {footer.rows}; run it again")
    return Results(header, rows, footer)


def load_begun(path: Path) -> tuple[Header, list[Verdict]]:
    """Header and rows of a verdicts.jsonl that has no footer yet. Raises UsageError for all else."""
    lines = _read_lines(path)
    if not lines or lines[0].get("kind") != "header":
        raise UsageError(f"{path} does not begin with a header")
    try:
        return Header(**_without_kind(lines[0])), [_row(line) for line in lines[1:]]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} has a line that does not fit schema {SCHEMA_VERSION}: {error}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the verdicts in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error.reason}): cut short? run the suite again") from error
    lines = []
    # Not splitlines: an engine's text may hold U+2028 and other ends of lines that JSON leaves as they are.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}, line {number} is not JSON ({error}): cut short? run the suite again") from error
        if not isinstance(value, dict):
            raise UsageError(f"{path}, line {number} is not a JSON object")
        lines.append(value)
    return lines


def _check_versions(path: Path, header: dict[str, Any]) -> None:
    for key, known in (("schema", SCHEMA_VERSION), ("spec_version", SPEC_VERSION)):
        if header.get(key) != known:
            raise UsageError(f"{path} has {key} {header.get(key)!r}, this pabench reads {known}; run the suite again")


def _without_kind(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "kind"}


def _row(line: dict[str, Any]) -> Verdict:
    if line.get("kind") != "case":
        raise ValueError(f"a line of kind {line.get('kind')!r} between header and footer")
    values = _without_kind(line)
    if "outcome" not in values:
        raise ValueError("a case without an outcome")
    return Verdict(**values | {"outcome": Outcome(values["outcome"])})
