"""From folders to what the report shows: finds runs and conformance results, and says what it could not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from pabench.analysis import find_runs, load_run, summarise
from pabench.analysis.runs import SET_ASIDE
from pabench.capacity import CAPACITY_FILE, Search, read_search
from pabench.conformance import Results, load_results
from pabench.errors import UsageError
from pabench.report.blocks import BlockTraces
from pabench.report.groups import RunData, SuiteData
from pabench.report.told import ClaimsFile, GateFile

VERDICTS_FILE = "verdicts.jsonl"
GATE_FILE = "gate.json"
CLAIMS_FILE = "claims.json"


@dataclass(frozen=True, slots=True)
class Told:
    """A file that the gate or the claims wrote. `place`: its folder, as the report names it; `found`: the fields of
    GateFile or ClaimsFile.
    """

    place: str
    found: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sources:
    """All that was found. `problems`: what was found but could not be read, and why."""

    runs: tuple[RunData, ...]
    suites: tuple[SuiteData, ...]
    decisions: tuple[Told, ...]
    claims: tuple[Told, ...]
    searches: tuple[Search, ...]
    problems: tuple[str, ...]


def read_sources(dirs: Sequence[Path]) -> Sources:
    """Read every run and conformance result at or below `dirs`. Raises UsageError where there is none to show."""
    if not dirs:
        raise UsageError("got no folder to report on; expected at least one that `pabench run` or `conform` wrote")
    for folder in dirs:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; expected one that `pabench run` or `pabench conform` wrote")
    problems: list[str] = []
    runs = _read_runs(dirs, problems)
    suites = _read_suites(dirs, runs, problems)
    decisions = tuple(_read_told(dirs, GATE_FILE, GateFile, problems))
    claims = tuple(_read_told(dirs, CLAIMS_FILE, ClaimsFile, problems))
    searches = _read_searches(dirs, problems)
    if not any((runs, suites, decisions, claims, searches)):
        where = ", ".join(str(folder) for folder in dirs)
        why = f"; could not be read: {'; '.join(problems)}" if problems else ""
        raise UsageError(
            f"nothing to report on below {where}: expected run folders (manifest.json) or conformance results "
            f"({VERDICTS_FILE}){why}"
        )
    return Sources(tuple(data for _, data in runs), tuple(suites), decisions, claims, searches, tuple(problems))


def _read_told(dirs: Sequence[Path], name: str, fields: type[BaseModel], problems: list[str]) -> Iterator[Told]:
    """Files of our own, called `name`, below the folders, each once: JSON objects of the version written now."""
    seen: set[Path] = set()
    for top in dirs:
        for path in sorted(top.rglob(name)):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                yield Told(_place(path.parent, top), fields.model_validate(_object(path)).model_dump())
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                problems.append(f"{_place(path, top)}: {where}: {first['msg']}; make the file again")
            except (OSError, ValueError) as error:
                problems.append(f"{_place(path, top)}: {error}")


def _read_searches(dirs: Sequence[Path], problems: list[str]) -> tuple[Search, ...]:
    """Searches for a capacity, each file once."""
    found: dict[Path, Search] = {}
    for top in dirs:
        for path in sorted(top.rglob(CAPACITY_FILE)):
            try:
                found.setdefault(path.resolve(), read_search(path))
            except UsageError as error:
                problems.append(str(error).replace(str(path), _place(path, top)))
    return tuple(found.values())


def _object(path: Path) -> dict[str, Any]:
    told = orjson.loads(path.read_bytes())
    if not isinstance(told, dict) or told.get("schema_version") != 1:
        raise ValueError("not of schema version 1, which this pabench reads: make it again")
    return told


def _read_runs(dirs: Sequence[Path], problems: list[str]) -> list[tuple[Path, RunData]]:
    """Runs in the order of the folders given, and in the order of time within each."""
    found: dict[Path, RunData] = {}
    traces = BlockTraces(problems)
    for top in dirs:
        fresh: list[tuple[Path, RunData]] = []
        for folder in find_runs(top):
            if folder.resolve() in found or SET_ASIDE in folder.relative_to(top).parts:
                continue
            place = _place(folder, top)
            try:
                run = load_run(folder)
                data = RunData(summarise(run), run.manifest, run.requests, run.telemetry, place,
                               traces.of(folder, top, run.manifest))
            except UsageError as error:
                problems.append(f"{place}: {str(error).replace(str(folder), place)}")
                continue
            fresh.append((folder.resolve(), data))
        found |= dict(sorted(fresh, key=lambda pair: pair[1].manifest.started_at))
    return list(found.items())


def _read_suites(dirs: Sequence[Path], runs: list[tuple[Path, RunData]], problems: list[str]) -> list[SuiteData]:
    found: dict[Path, SuiteData] = {}
    for top in dirs:
        for path in sorted(top.rglob(VERDICTS_FILE)):
            if path.resolve() in found:
                continue
            place = _place(path.parent, top)
            try:
                results = load_results(path)
            except UsageError as error:
                problems.append(f"{place}: {str(error).replace(str(path), VERDICTS_FILE)}")
                continue
            found[path.resolve()] = SuiteData(suite_label(path.resolve(), top.resolve(), results, runs), results, place)
    return list(found.values())


def suite_label(path: Path, top: Path, results: Results, runs: list[tuple[Path, RunData]]) -> str:
    """Which engine a conformance result belongs to.

    The label in its header; else the one label of the runs in the nearest folder around it; else the one label of the
    runs against the same URL; else it stands for itself, under what the engine calls itself and its folder's name.
    """
    told = results.header.engine.get("label")
    if told:
        return str(told)
    for folder in path.parents:
        near = {data.summary.label for run, data in runs if run.is_relative_to(folder)}
        if len(near) == 1:
            return near.pop()
        if near or folder == top:
            break
    same_url = {data.summary.label for _, data in runs if data.manifest.url == results.header.url}
    if len(same_url) == 1:
        return same_url.pop()
    name = " ".join(str(results.header.engine[key]) for key in ("dialect", "version") if results.header.engine.get(key))
    return f"{name or 'engine'} ({path.parent.name})"


def _place(folder: Path, top: Path) -> str:
    """`folder` as the report names it: below the asked-for folder, whose own name leads."""
    inner = folder.relative_to(top)
    return str(Path(top.resolve().name) / inner)
