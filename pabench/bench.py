"""`pabench bench`: several engines through the same conformance suite and the same loads, and one report.

A bench suite is a TOML file: a probe (or a command that writes another model), a workload at several loads, and the
engines, each with a command that starts it or a URL where it runs. Engines run one after another, so that they do not
share the machine; with `turns` they are all there for the loads, each of which is put on one after another.

    OUT/
      probe/ or model/            the model they all serve; model.log beside it, when a command wrote it
      <engine>/conformance/       verdicts.jsonl, failed cases, and what the engine wrote: a log a start
      <engine>/<load>/            one run folder a load
      <engine>/load-engine.log    what the engine wrote
      <engine>/*.blocks.jsonl     where it records its blocks
      report.html
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pabench.bench_suite import (
    CONFORMANCE_FOLDER,
    MODEL_FOLDER,
    PROBE_FOLDER,
    BenchSuite,
    EnginePlan,
    folder_name,
)
from pabench.conformance.runner import run_suite
from pabench.engines import EngineProcess
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
from pabench.load import Progress, Workload, run_loop
from pabench.probe import build_checkpoint, preset
from pabench.series import Series
from pabench.telemetry.block_trace import TRACE_SUFFIX


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


def run_bench(suite: BenchSuite, out: Path, narrator: Narrator, results: list[EngineResult]) -> None:
    """Run `suite` into the folder `out`, adding to `results`; an engine that cannot be run does not stop the others.

    KeyboardInterrupt, and RecordsUnwritable, pass through after what was measured has been written.
    """
    model = _make_model(suite, out, narrator)
    for group in [suite.engines] if suite.turns else [(plan,) for plan in suite.engines]:
        fresh = [EngineResult(plan.label) for plan in group]
        results += fresh
        _run_together(suite, group, out, model, narrator, fresh)


def _run_together(
    suite: BenchSuite, plans: Sequence[EnginePlan], out: Path, model: Path, narrator: Narrator,
    results: Sequence[EngineResult],
) -> None:
    """Conformance of one after another, then the loads, each of them on one after another, in fresh processes: what
    the suite left behind is no part of the loads. One that fails leaves the others going.
    """
    running: list[tuple[EngineResult, Path, Series]] = []

    @contextmanager
    def forgiving(result: EngineResult) -> Iterator[None]:
        try:
            yield
        except (EngineError, UsageError) as error:
            result.failure = str(error)
            running[:] = [each for each in running if each[0] is not result]
            narrator.stage(f"{result.label}: {error}")

    with ExitStack() as processes:
        for plan, result in zip(plans, results, strict=True):
            folder = out / folder_name(plan.label)
            with forgiving(result):
                if suite.profile_of(plan) != "none":
                    narrator.stage(f"{plan.label}: conformance")
                    _conform(suite, plan, folder / CONFORMANCE_FOLDER, model, narrator, result)
        for plan, result in zip(plans, results, strict=True):
            folder = out / folder_name(plan.label)
            if result.failure is None:
                with forgiving(result):
                    running.append((result, folder, _start(suite, plan, folder, model, narrator, processes)))
        for number, workload in enumerate(suite.workloads()):
            # There and back: what drifts from load to load meets all alike.
            for result, folder, series in running[:: -1 if number % 2 else 1]:
                with forgiving(result):
                    _load(series, number, workload, folder / folder_name(workload.load_text), result)
        for result, _, _ in running:
            result.finished = True


def _start(
    suite: BenchSuite, plan: EnginePlan, folder: Path, model: Path, narrator: Narrator, processes: ExitStack
) -> Series:
    """An engine that is there for its loads, until `processes` ends."""
    narrator.stage(f"starting {plan.label} for the loads")
    url = processes.enter_context(_reach(plan, folder / "load-engine.log", model))
    probe = None if suite.model_command else model
    examination = run_loop(examine(url, dialect=plan.dialect, probe=probe, timeout_s=suite.workloads()[0].timeout_s))
    return Series(examination, url, plan.label, suite.first_seed, narrator.load, calibrate=suite.calibrate)


def _load(series: Series, number: int, workload: Workload, folder: Path, result: EngineResult) -> None:
    series.require(workload)
    result.runs.append(folder)
    manifest = series.run(number, workload, folder)[0].manifest
    result.flawless &= manifest.flawless
    if manifest.failure is not None:
        raise EngineDied(manifest.failure)


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
