"""Loads: one on one engine, several on several, and the report of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from pabench.commands.options import (
    AsJson,
    DialectName,
    KeyVariable,
    ProbeName,
    Quiet,
    Url,
    api_key_in,
    examined,
    new_folder,
    require_new,
)
from pabench.errors import EXIT_NOT_CONFORMING, EXIT_OK, PabenchError

app = typer.Typer()


@app.command()
def run(
    url: Url,
    workload: Annotated[str, typer.Option(help="Name of a workload that ships with pabench, or a TOML file.")],
    out: Annotated[Path | None, typer.Option(help="New run folder (results/<time>-<workload> by default).")] = None,
    label: Annotated[str | None, typer.Option(help="What to call the engine in tables and reports.")] = None,
    users: Annotated[int | None, typer.Option(help="Closed loop with this many users.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop at this many requests a second.")] = None,
    num_requests: Annotated[int | None, typer.Option(help="How many requests in all.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop sending after this many seconds.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same prompts and schedule.")] = 0,
    dialect: DialectName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Put a load on an engine, verify every answer, and write a run folder.

    Exit 0 when every request was answered and, on the probe, every token right; 1 when not.

    Example: pabench run --url http://127.0.0.1:8000 --workload sharegpt-mini --users 16
    """
    from pabench.load import load_workload, run_workload
    from pabench.terminal import live_load, show_run

    plan = load_workload(workload, users=users, rate_per_s=rate, num_requests=num_requests, duration_s=duration_s)
    key = api_key_in(api_key_env)
    folder = out or new_folder(plan.name)
    require_new(folder)
    examination = examined(url, dialect, probe, api_key_env)
    name = label or examination.facts.dialect
    try:
        with live_load(plan, name, quiet=quiet or as_json) as progress:
            manifest = asyncio.run(run_workload(
                examination, plan, folder, url=url, label=name, seed=seed, progress=progress, api_key=key,
            ))
    finally:
        if (folder / "requests.parquet").exists():  # an interrupted run has results too
            show_run(folder, as_json=as_json)
    if manifest.failure is not None:
        raise PabenchError(manifest.failure)
    raise SystemExit(EXIT_OK if manifest.flawless else EXIT_NOT_CONFORMING)


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
    from pabench.bench import EngineResult, load_suite, run_bench
    from pabench.terminal import TerminalNarrator, finish_bench

    plan = load_suite(suite)
    folder = out or new_folder(Path(suite).stem)
    require_new(folder)
    results: list[EngineResult] = []
    try:
        run_bench(plan, folder, TerminalNarrator(quiet=quiet or as_json), results)
    finally:
        finish_bench(results, folder, as_json=as_json)
    raise SystemExit(max(result.exit_code for result in results))
