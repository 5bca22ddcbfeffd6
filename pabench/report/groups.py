"""Runs sorted for comparison: engines, workloads and load levels. The report's input, already read from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pabench.analysis.summary import RunSummary
from pabench.conformance import Results
from pabench.load.arrivals import ClosedArrivals, ConstantArrivals, GammaArrivals, PoissonArrivals
from pabench.load.manifest import Manifest
from pabench.report.palette import Look, look
from pabench.telemetry.block_trace import BlockTrace


@dataclass(frozen=True, slots=True)
class RunData:
    """One run: its summary, and the tables that figures draw from."""

    summary: RunSummary
    manifest: Manifest
    requests: pd.DataFrame         # columns of pabench.load.records.RequestRecord
    telemetry: pd.DataFrame        # columns of pabench.telemetry.vocabulary.KVSample
    place: str                     # its folder, below the one that was asked for
    blocks: BlockTrace | None = None  # who owned which block, where the engine recorded it

    @property
    def capacity_tokens(self) -> int | None:
        """Slots in the engine's pool; None where it does not tell."""
        kv = self.manifest.engine.kv
        return None if kv is None else kv.capacity_tokens

    @property
    def level(self) -> float:
        """Load as a number: users or requests per second; 0 where the run has neither."""
        summary = self.summary
        return float(summary.users if summary.users is not None else summary.rate_per_s or 0.0)

    @property
    def kind(self) -> str:
        """ "users" (closed loop) or "rate" (open loop)."""
        return "users" if self.summary.users is not None else "rate"

    @property
    def shape(self) -> str:
        """How requests arrive, but for the level: runs that differ in it are not set against each other."""
        arrivals, unit = self.manifest.workload.arrivals, self.manifest.workload.rate_unit
        if isinstance(arrivals, ClosedArrivals):
            return "closed loop" + (f", {arrivals.think_s:g} s between" if arrivals.think_s else "")
        fixed = isinstance(arrivals, ConstantArrivals | PoissonArrivals | GammaArrivals)
        text = arrivals.text(unit)
        return f"open loop, {text.partition(f' {unit} ')[2] if fixed else text}"

    @property
    def believable(self) -> bool:
        """Valid and run to its end: its numbers may stand in a headline."""
        return self.summary.validity.valid and self.summary.status == "complete"


def believed(runs: Sequence[RunData]) -> tuple[RunData, ...]:
    """The believable ones; where there is none, all, which whoever shows them must say."""
    return tuple(run for run in runs if run.believable) or tuple(runs)


@dataclass(frozen=True, slots=True)
class SuiteData:
    """One conformance result, and the engine label that it belongs to."""

    label: str
    results: Results
    place: str


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine label and how it looks everywhere in the report."""

    index: int
    name: str
    look: Look
    runs: tuple[RunData, ...]
    suites: tuple[SuiteData, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The runs that may be set against each other: one workload, one way of arriving."""

    index: int
    workload: str
    kind: str
    shape: str                      # how requests arrive, but for the level: "closed loop", "open loop, Poisson"
    engines: tuple[Engine, ...]     # those that ran it; `runs` are those of this group alone, by level
    levels: tuple[float, ...]

    @property
    def level_name(self) -> str:
        """Axis title of the load."""
        return "concurrent users" if self.kind == "users" else f"offered load ({self.rate_unit})"

    @property
    def rate_unit(self) -> str:
        """What arrives at a rate."""
        sessions = any(run.manifest.workload.session is not None for engine in self.engines for run in engine.runs)
        return "sessions/s" if sessions else "requests/s"

    def at(self, engine: Engine, level: float) -> tuple[RunData, ...]:
        """Runs (more than one where it was repeated) of `engine` at `level`."""
        return tuple(run for run in engine.runs if run.level == level)

    def load_text(self, level: float) -> str:
        """What the runs call this level, e.g. "8 users"."""
        return next(run.summary.load for engine in self.engines for run in engine.runs if run.level == level)

    @property
    def common_levels(self) -> tuple[float, ...]:
        """The levels that every engine of the group ran."""
        return tuple(level for level in self.levels if all(self.at(engine, level) for engine in self.engines))


def sort_engines(runs: Sequence[RunData], suites: Sequence[SuiteData]) -> tuple[Engine, ...]:
    """One `Engine` a label, in the order of first appearance: runs first, then conformance results."""
    names = list(dict.fromkeys([run.summary.label for run in runs] + [suite.label for suite in suites]))
    return tuple(
        Engine(
            index,
            name,
            look(index),
            tuple(sorted((r for r in runs if r.summary.label == name), key=lambda r: r.level)),
            tuple(suite for suite in suites if suite.label == name),
        )
        for index, name in enumerate(names)
    )


def sort_groups(engines: Sequence[Engine]) -> tuple[Group, ...]:
    """Groups in the order of first appearance."""
    keys = list(dict.fromkeys(_key(run) for engine in engines for run in engine.runs))
    return tuple(_group(index, key, engines) for index, key in enumerate(keys))


def _key(run: RunData) -> tuple[str, str, str]:
    return run.summary.workload, run.kind, run.shape


def _group(index: int, key: tuple[str, str, str], engines: Sequence[Engine]) -> Group:
    members = []
    for engine in engines:
        runs = tuple(run for run in engine.runs if _key(run) == key)
        if runs:
            members.append(Engine(engine.index, engine.name, engine.look, runs, engine.suites))
    levels = tuple(sorted({run.level for engine in members for run in engine.runs}))
    return Group(index, *key, tuple(members), levels)
