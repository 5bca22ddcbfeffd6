"""Loads: one on one engine, several on several, and the report of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pabench.commands.options import (
    AsJson,
    Calibrate,
    DeadlineBound,
    DialectName,
    KeyVariable,
    Label,
    LoadSeed,
    ModelName,
    NumRequests,
    ProbeName,
    Quiet,
    RayAddress,
    TpotBound,
    TtftBound,
    Url,
    Workers,
    api_key_in,
    bounds,
    examined,
    new_folder,
    require_here,
    require_new,
    results_in,
)
from pabench.errors import EXIT_NOT_CONFORMING, EXIT_OK, PabenchError, UsageError

if TYPE_CHECKING:  # each command imports what it needs, so that `--help` is quick
    from pabench.load import Manifest, Placement, Progress, Workload

app = typer.Typer()
_OPTIONS = {  # of a workload's fields
    "rate_per_s": "--rate", "window_s": "--window", "slo": "--ttft-ms, --tpot-ms and --deadline-ms"}


@app.command()
def run(
    url: Url,
    workload: Annotated[str | None, typer.Option(
        "--workload", help="Name of a workload that ships with pabench, or a TOML file.")] = None,
    out: Annotated[Path | None, typer.Option(help="New run folder (results/<time>-<workload> by default).")] = None,
    label: Label = None,
    users: Annotated[int | None, typer.Option(help="Closed loop with this many users.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop at this many requests a second.")] = None,
    num_requests: NumRequests = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop sending after this many seconds.")] = None,
    ttft_ms: TtftBound = None, tpot_ms: TpotBound = None, deadline_ms: DeadlineBound = None,
    window: Annotated[str | None, typer.Option(help="Take throughput from these seconds, e.g. 5,25, and not from the "
                                                    "steady window that is found.")] = None,
    seed: LoadSeed = None,
    api: Annotated[str | None, typer.Option(help="Where prompts go: completions, or chat, each as the one message of a "
                                                 "chat.")] = None,
    cache: Annotated[str | None, typer.Option(help="State of the prefix cache at the start, brought about and checked: "
                                                   "cold, warm, or a share of the prompts, e.g. 0.5.")] = None,
    calibrate: Calibrate = False,
    resume: Annotated[Path | None, typer.Option(
        help="Go on with the run in this folder, which was broken off, as it was planned.")] = None,
    workers: Workers = 1, ray: RayAddress = None,
    dialect: DialectName = None, model: ModelName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Put a load on an engine, verify every answer, and write a run folder.

    Exit 0 when every request was answered and, on the probe, every token right; 1 when not.

    Example: pabench run --url http://127.0.0.1:8000 --workload sharegpt-mini --users 16

    Example: pabench run --url http://127.0.0.1:8000 --resume results/20261128-101500-sharegpt-mini
    """
    from pabench.calibration import require_streamed
    from pabench.load import Placement, load_workload, read_manifest, resume_run, run_workload

    require_here(ray, calibrate=calibrate)
    placement, key = Placement(workers, ray), api_key_in(api_key_env)
    changes = {"users": users, "rate_per_s": rate, "num_requests": num_requests, "duration_s": duration_s,
               "slo": bounds(ttft_ms=ttft_ms, tpot_ms=tpot_ms, deadline_ms=deadline_ms),
               "window_s": _window(window), "cache": _cache(cache), "api": api}
    show = _Show(as_json=as_json, quiet=quiet, calibrate=calibrate, placement=placement, api_key=key)
    if resume is not None:
        _refuse_changes(workload=workload, out=out, label=label, seed=seed, **changes)
        results_in(resume)
        before = read_manifest(resume)
        examination = examined(url, dialect, probe, api_key_env, before.workload.timeout_s, model=model)
        if calibrate:
            require_streamed(before.workload, examination.facts)
        show.carry(before.workload, before.label, resume, lambda progress: resume_run(
            examination, resume, url=url, progress=progress, api_key=key, placement=placement))
    if workload is None:
        raise UsageError("give --workload, or --resume and the folder of a run that was broken off")
    plan = load_workload(workload, **changes)
    folder = out or new_folder(plan.name)
    require_new(folder)
    examination = examined(url, dialect, probe, api_key_env, plan.timeout_s, model=model)
    if calibrate:
        require_streamed(plan, examination.facts)
    name = label or examination.facts.dialect
    show.carry(plan, name, folder, lambda progress: run_workload(
        examination, plan, folder, url=url, label=name, seed=seed, progress=progress, api_key=key, placement=placement))


@dataclass(frozen=True, slots=True)
class _Show:
    """How one run is shown: while it goes on, and at its end."""

    as_json: bool
    quiet: bool
    calibrate: bool
    placement: Placement
    api_key: str | None = field(repr=False)

    def carry(
        self, plan: Workload, name: str, folder: Path, run: Callable[[Progress], Coroutine[Any, Any, Manifest]]
    ) -> NoReturn:
        """Do `run`, show it however it ends, and exit."""
        from pabench.calibration import calibrate_run
        from pabench.load import run_loop
        from pabench.terminal.live import live_load

        try:
            with live_load(plan, name, folder, quiet=self.quiet or self.as_json, api_key=self.api_key) as progress:
                manifest = run_loop(run(progress))
        except UsageError:
            raise  # refused, before anything was sent
        except BaseException:
            self._tell(folder)  # an interrupted run has results too
            raise
        try:
            if self.calibrate and manifest.failure is None:
                calibrate_run(folder, self.placement)
        finally:
            self._tell(folder)
        if manifest.failure is not None:
            raise PabenchError(manifest.failure)
        raise SystemExit(EXIT_OK if manifest.flawless else EXIT_NOT_CONFORMING)

    def _tell(self, folder: Path) -> None:
        from pabench.analysis import finish_run
        from pabench.terminal.runs import show_run

        if (folder / "requests.parquet").exists():
            show_run(finish_run(folder)[1], as_json=self.as_json)


def _refuse_changes(**given: object) -> None:
    """A run is resumed as it was planned."""
    names = [_OPTIONS.get(name) or f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if names:
        raise UsageError(f"a run is resumed as it was planned: leave out {', '.join(names)}")


@app.command()
def calibrate(
    streams: Annotated[str, typer.Option(help="Numbers of streams to try, e.g. 1,16,64.")] = "1,4,16,64,256",
    itl_ms: Annotated[float, typer.Option(help="Gap between a stream's tokens, as the stub makes it.")] = 10.0,
    duration_s: Annotated[float, typer.Option(help="Length of each try, seconds.")] = 4.0,
    workers: Workers = 1,
    as_json: AsJson = False,
) -> None:
    """Measure the client's own error on this machine: what it notes as a token's arrival, against the stub's stamps.

    Example: pabench calibrate --streams 1,64,512 --itl-ms 20
    """
    from pabench.load import Placement
    from pabench.load.calibrate import ClientError
    from pabench.load.calibrate import calibrate as measure
    from pabench.terminal.runs import show_calibration

    placement = Placement(workers)
    tried = [number.strip() for number in streams.split(",")]
    if not all(number.isdecimal() and int(number) for number in tried):
        raise UsageError(f"--streams is {streams!r}, expected whole numbers above 0 with commas between them")
    found: list[ClientError] = []
    try:
        for number in tried:
            found.append(measure(int(number), itl_ms=itl_ms, duration_s=duration_s, placement=placement))
    finally:
        if found:  # an interrupted one has results too
            show_calibration(found, as_json=as_json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one offline HTML file that compares all runs and conformance results below the folders.

    Example: pabench report results/demo --out report.html
    """
    from pabench.report import write_report

    write_report(folders, out)
    print(out)


@app.command()
def bench(
    suite: Annotated[str, typer.Argument(help="A bench suite: the name of one that ships, or a TOML file.")] = "demo",
    out: Annotated[Path | None, typer.Option(help="New results folder (results/<time>-<suite> by default).")] = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Compare engines: conformance, loads, verification, and a report.

    Example: pabench bench demo
    """
    from pabench.bench import EngineResult, run_bench
    from pabench.bench_suite import load_suite
    from pabench.terminal.live import TerminalNarrator
    from pabench.terminal.runs import finish_bench

    plan = load_suite(suite)
    folder = out or new_folder(Path(suite).stem)
    require_new(folder)
    results: list[EngineResult] = []
    try:
        run_bench(plan, folder, TerminalNarrator(quiet=quiet or as_json), results)
    finally:
        finish_bench(results, folder, as_json=as_json)
    raise SystemExit(max(result.exit_code for result in results))


def _window(text: str | None) -> list[float] | None:
    """Two numbers with a comma between them."""
    if text is None:
        return None
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--window is {text!r}, expected start and end in seconds, e.g. 5,25") from None
    return [start, end]


def _cache(text: str | None) -> str | float | None:
    """A share where it is a number; what is neither that nor a state, the workload refuses."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text
