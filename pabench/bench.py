"""`pabench bench`: several engines through the same conformance suite and the same loads, and one report.

A bench suite is a TOML file: a probe (or a command that writes another model), a workload at several loads, and the
engines, each with a command that starts it or a URL where it runs. Engines run one after another, so that they do not
share the machine.

    OUT/
      probe/ or model/            the model they all serve; model.log beside it, when a command wrote it
      <engine>/conformance/       verdicts.jsonl, failed cases, and what the engine wrote: a log a start
      <engine>/<load>/            one run folder a load
      <engine>/load-engine.log    what the engine wrote
      <engine>/*.blocks.jsonl     where it records its blocks
      report.html
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pabench.conformance.runner import run_suite
from pabench.engines import EngineProcess, dialect
from pabench.engines.doctor import examine
from pabench.errors import (
    EXIT_COULD_NOT_RUN,
    EXIT_INTERRUPTED,
    EXIT_NOT_CONFORMING,
    EXIT_OK,
    EngineDied,
    EngineError,
    UsageError,
)
from pabench.files import read_model
from pabench.load import Progress, Workload, load_workload, run_loop
from pabench.load.workload import Bounds
from pabench.probe import build_checkpoint, preset
from pabench.resources import data_dir
from pabench.series import Series
from pabench.telemetry.block_trace import TRACE_SUFFIX

PROBE_FOLDER = "probe"
MODEL_FOLDER = "model"
CONFORMANCE_FOLDER = "conformance"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Profile = Literal["none", "smoke", "ci", "full"]


class EnginePlan(_Strict):
    """One engine: `command` starts it ({python}, {model}, {port} and {block_trace} are filled in), or it runs at `url`.

    {block_trace} is a new file beside the engine's log, for an engine that can record its block ownership. `profile`:
    the suite's when None.
    """

    label: str = Field(min_length=1)
    dialect: str | None = None
    command: tuple[str, ...] = ()
    url: str = "http://127.0.0.1:{port}"
    env: dict[str, str] = {}
    ready_timeout_s: float = Field(default=180.0, gt=0)
    profile: Profile | None = None

    @model_validator(mode="after")
    def _reachable(self) -> EnginePlan:
        if not self.command and "{port}" in self.url:
            raise ValueError("give a command that starts the engine, or the url where it runs")
        if self.dialect is not None:
            dialect(self.dialect)
        return self


class LoadPlan(_Strict):
    """One load of a sweep: overrides of the workload's own fields."""

    users: int | None = Field(default=None, ge=1)
    rate_per_s: float | None = Field(default=None, gt=0)
    num_requests: int | None = Field(default=None, ge=1)
    duration_s: float | None = Field(default=None, gt=0)


class BenchSuite(_Strict):
    """A comparison: see the module. `profile` "none" leaves conformance out. `slo`: in place of the workload's.

    Load k of each engine is drawn from `seed` + k.
    `calibrate`: after each run, the client's own error is measured.
    `model_command` writes another model than the probe into the folder {model}. Its answers cannot be verified.
    """

    description: str
    probe: str = "tiny"
    probe_dtype: str = "float32"
    model_command: tuple[str, ...] = ()
    profile: Profile = "smoke"
    workload: str
    slo: Bounds | None = None
    calibrate: bool = False
    seed: int | None = Field(default=None, ge=0)  # None: the workload's own
    loads: tuple[LoadPlan, ...] = Field(alias="load", min_length=1)
    engines: tuple[EnginePlan, ...] = Field(alias="engine", min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> BenchSuite:
        if preset(self.probe).window is not None and self.workloads()[0].prompt != "text":
            raise ValueError(f"probe {self.probe!r} sees a window of its prompts alone, and workload {self.workload!r} "
                             "reads them whole: name another preset")
        profiles = {self.profile_of(engine) for engine in self.engines}
        if self.model_command and (profiles != {"none"} or self.workloads()[0].prompt != "text"):
            raise ValueError('with a model_command there is no probe: set profile = "none" and a workload whose prompt '
                             f'is "text" (got {", ".join(map(repr, sorted(profiles)))} and {self.workload!r})')
        for what, names, taken in (
            ("engine labels", [folder_name(engine.label) for engine in self.engines], {PROBE_FOLDER, MODEL_FOLDER}),
            ("loads", [folder_name(workload.load_text) for workload in self.workloads()], {CONFORMANCE_FOLDER}),
        ):
            if len(set(names) | taken) != len(names) + len(taken):
                raise ValueError(f"{what} must differ from each other and from {taken}, as folder names: {names}")
        return self

    def workloads(self) -> list[Workload]:
        """The workload at each load."""
        slo = None if self.slo is None else self.slo.model_dump(exclude_none=True)
        return [load_workload(self.workload, **load.model_dump(), slo=slo) for load in self.loads]

    def profile_of(self, engine: EnginePlan) -> Profile:
        """How much conformance asks of it."""
        return engine.profile or self.profile

    @property
    def first_seed(self) -> int:
        """Of conformance and the first load."""
        return self.workloads()[0].seed if self.seed is None else self.seed


@dataclass(slots=True)
class EngineResult:
    """What came of one engine."""

    label: str
    conformance: int | None = None                  # exit code of the suite, None when it was left out
    runs: list[Path] = field(default_factory=list)  # folders, one a load, also of a load that was cut short
    flawless: bool = True                           # every request so far was answered, and rightly
    finished: bool = False                          # all was asked that the bench suite asks
    failure: str | None = None                      # why it could not be run to its end

    @property
    def exit_code(self) -> int:
        """0 conforming and every answer right, 1 not, 2 could not run, or not to the end."""
        if not self.finished:
            return EXIT_COULD_NOT_RUN
        if self.conformance:
            return self.conformance
        return EXIT_OK if self.flawless else EXIT_NOT_CONFORMING

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.finished:
            return f"not run to its end: {self.failure or 'interrupted'}"
        conforming = {None: "conformance not asked", EXIT_OK: "conforming", EXIT_NOT_CONFORMING: "NOT conforming"}
        answers = "every request answered as it should be" if self.flawless else "NOT every request answered rightly"
        return f"{conforming.get(self.conformance, 'conformance could not be decided')}; {answers}"


class Narrator(Protocol):
    """Where progress goes; the terminal's is in `pabench.terminal.live`."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        ...

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be shown but failures."""
        ...

    def load(self, workload: Workload, label: str, folder: Path) -> AbstractContextManager[Progress]:
        """Show one load while it runs into `folder`; the context is the progress callback."""
        ...


def known_suites() -> dict[str, Path]:
    """Name -> file of the bench suites that ship with pabench."""
    return {path.stem: path for path in sorted((data_dir("suites") / "bench").glob("*.toml"))}


def load_suite(name_or_path: str) -> BenchSuite:
    """A bench suite by name or file. Raises UsageError of one line."""
    known = known_suites()
    path = known.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise UsageError(f"unknown bench suite {name_or_path!r}: neither a file nor one of {', '.join(known)}")
    return read_model(path, BenchSuite, "bench suite")


def folder_name(label: str) -> str:
    """A label as a folder name: nothing but letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "engine"


def run_bench(suite: BenchSuite, out: Path, narrator: Narrator, results: list[EngineResult]) -> None:
    """Run `suite` into the folder `out`, adding to `results`; an engine that cannot be run does not stop the others.

    KeyboardInterrupt, and RecordsUnwritable, pass through after what was measured has been written.
    """
    model = _make_model(suite, out, narrator)
    for plan in suite.engines:
        result = EngineResult(plan.label)
        results.append(result)
        try:
            _run_engine(suite, plan, out / folder_name(plan.label), model, narrator, result)
            result.finished = True
        except (EngineError, UsageError) as error:
            result.failure = str(error)
            narrator.stage(f"{plan.label}: {error}")


def _make_model(suite: BenchSuite, out: Path, narrator: Narrator) -> Path:
    """The folder of the model that all engines serve. Raises UsageError when it cannot be made."""
    if not suite.model_command:
        narrator.stage(f"building the {suite.probe} probe in {out / PROBE_FOLDER}")
        build_checkpoint(preset(suite.probe), out / PROBE_FOLDER, suite.probe_dtype)
        return out / PROBE_FOLDER
    model = out / MODEL_FOLDER
    filled = {"{python}": sys.executable, "{model}": str(model.resolve())}
    command = [_fill(word, filled) for word in suite.model_command]
    narrator.stage(f"making the model: {' '.join(command)}")
    model.parent.mkdir(parents=True, exist_ok=True)
    log = model.with_suffix(".log")
    try:
        with log.open("wb") as stream:
            subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=True)
    except OSError as error:
        raise UsageError(f"the model_command cannot be run: {command[0]!r}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(f"the model_command failed with exit code {error.returncode}: see {log}") from None
    return model


def _run_engine(
    suite: BenchSuite, plan: EnginePlan, folder: Path, model: Path, narrator: Narrator, result: EngineResult
) -> None:
    """Conformance, then the loads, each in a fresh process: what the suite left behind is no part of the loads."""
    if suite.profile_of(plan) != "none":
        narrator.stage(f"{plan.label}: conformance")
        _conform(suite, plan, folder / CONFORMANCE_FOLDER, model, narrator, result)
    narrator.stage(f"starting {plan.label} for the loads")
    with _reach(plan, folder / "load-engine.log", model) as url:
        probe = None if suite.model_command else model
        examination = run_loop(examine(url, dialect=plan.dialect, probe=probe,
                                       timeout_s=suite.workloads()[0].timeout_s))
        series = Series(examination, url, plan.label, suite.first_seed, narrator.load, calibrate=suite.calibrate)
        for number, workload in enumerate(suite.workloads()):
            series.require(workload)
            result.runs.append(folder / folder_name(workload.load_text))
            manifest = series.run(number, workload, result.runs[-1])[0].manifest
            result.flawless &= manifest.flawless
            if manifest.failure is not None:
                raise EngineDied(manifest.failure)


def _conform(
    suite: BenchSuite, plan: EnginePlan, out: Path, model: Path, narrator: Narrator, result: EngineResult
) -> None:
    launch = None
    if plan.command:
        command, env = _filled(plan, model, out.with_name(f"conformance-engine-{{start}}{TRACE_SUFFIX}"))
        launch = shlex.join([*(["env", *(f"{name}={value}" for name, value in env.items())] if env else []), *command])
    result.conformance = run_suite(
        plan.url, launch=launch, ready_timeout_s=plan.ready_timeout_s, out=out, profile=suite.profile_of(plan),
        dialect=plan.dialect, probe=model, seed=suite.first_seed, quiet=narrator.quiet)
    if result.conformance == EXIT_INTERRUPTED:
        raise KeyboardInterrupt


@contextmanager
def _reach(plan: EnginePlan, log: Path, model: Path) -> Iterator[str]:
    """The engine's URL; started here and stopped behind when the plan has a command."""
    if not plan.command:
        yield plan.url
        return
    command, env = _filled(plan, model, log.with_suffix(TRACE_SUFFIX))
    with EngineProcess(command, url=plan.url, log=log, env=env,
                       ready_timeout_s=plan.ready_timeout_s) as process:
        yield process.url


def _filled(plan: EnginePlan, model: Path, block_trace: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment; {port} stays as it is."""
    values = {"{python}": sys.executable, "{model}": str(model.resolve()), "{block_trace}": str(block_trace.resolve())}
    return ([_fill(word, values) for word in plan.command],
            {name: _fill(value, values) for name, value in plan.env.items()})


def _fill(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word
