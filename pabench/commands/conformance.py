"""Conformance: the suite, one case again, the mutants, and results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pabench.commands.options import (
    DialectName,
    Impl,
    KeyVariable,
    Launch,
    ModelName,
    OptionalUrl,
    ProbeName,
    Quiet,
    ReadyTimeout,
    api_key_in,
    need_engine,
    new_folder,
    results_in,
)

app = typer.Typer()

Patience = Annotated[float, typer.Option(
    help="For a slow engine: so many times the profile's time for each request, each case and the run.")]


@app.command()
def conform(
    url: OptionalUrl = None, launch: Launch = None, impl: Impl = None,
    profile: Annotated[str, typer.Option(help="smoke, ci or full.")] = "ci",
    out: Annotated[Path | None, typer.Option(help="New folder for verdicts.jsonl and the failed cases.")] = None,
    requirement: Annotated[list[str] | None, typer.Option("--id", help="Only this requirement (repeatable).")] = None,
    expect: Annotated[Path | None, typer.Option(help="Expected failures and disabled requirements (TOML).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same prompts.")] = 0,
    dialect: DialectName = None, model: ModelName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    ready_timeout_s: ReadyTimeout = 600.0, patience: Patience = 1.0, quiet: Quiet = False,
) -> None:
    """Ask an engine, an allocator or a kernel every requirement: exit 0 conforming, 1 not conforming, 2 could not run.

    Example: pabench conform --url http://127.0.0.1:8000 --profile ci --out results/conform

    Example: pabench conform --launch "vllm serve probe --port {port}" --profile ci

    Example: pabench conform --impl acme/adapter.py:allocator
    """
    from pabench.conformance.runner import run_suite

    raise SystemExit(run_suite(
        url, launch=launch, ready_timeout_s=ready_timeout_s, impl=impl, out=out or new_folder("conform"),
        profile=profile, dialect=dialect, model=model, probe=probe, ids=requirement or (), expect=expect, seed=seed,
        api_key=api_key_in(api_key_env), live=not quiet, patience=patience,
    ))


@app.command()
def replay(
    case: Annotated[Path, typer.Argument(help="File of a failed case, as the failure text names it.")],
    url: OptionalUrl = None, launch: Launch = None, impl: Impl = None, dialect: DialectName = None,
    model: ModelName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    ready_timeout_s: ReadyTimeout = 600.0, patience: Patience = 1.0,
) -> None:
    """Ask one failed case again: exit 0 when it holds now, 1 when it still fails.

    Example: pabench replay results/conform/case-39dac3ee.json --url http://127.0.0.1:8000
    """
    from pabench.conformance.runner import replay_case

    raise SystemExit(replay_case(
        case, url=url, launch=launch, ready_timeout_s=ready_timeout_s, impl=impl, dialect=dialect, model=model,
        probe=probe, api_key=api_key_in(api_key_env), patience=patience,
    ))


@app.command()
def mutants(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="These alone; all by default.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="kernel, alloc or http (repeatable); all by default.")] = None,
    profile: Annotated[str, typer.Option(help="smoke, ci or full.")] = "ci",
    out: Annotated[Path | None, typer.Option(
        help="Results folder (results/<time>-mutants by default). What it holds is not asked again.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write the table to.")] = None,
) -> None:
    """Ask engines with one known fault each, and show which requirements notice: exit 0 when each is, 1 when not.

    Interrupted, it goes on where it was when it is given the same --out. Needs the extra `engine`.

    Example: pabench mutants --level alloc --out results/mutants
    """
    need_engine()
    from pabench.conformance.kills import exit_code, kills_page, questions, run_mutants
    from pabench.report.build import check_out, write_atomic
    from pabench.terminal.kills import show_kill, show_kills

    if markdown is not None:
        check_out(markdown)
    asked = questions(names or (), level or (), profile)
    folder = out or new_folder("mutants")
    results_in(folder)
    kills = run_mutants(asked, folder, profile, show_kill)
    show_kills(kills)
    if markdown is not None:
        words = ["pabench", "mutants", *(names or ()), *(word for each in level or () for word in ("--level", each))]
        write_atomic(markdown, kills_page(kills, " ".join([*words, "--profile", profile])))
    print(f"results: {folder}")
    raise SystemExit(exit_code(kills))


@app.command()
def matrix(
    results: Annotated[list[str], typer.Argument(
        metavar="[NAME=]PATH...", help="Results of `pabench conform`: folders or files. One NAME, one column.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write (matrix.html by default).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write, instead or as well.")] = None,
) -> None:
    """Set conformance results side by side: requirements by implementations, each failure in full.

    Example: pabench matrix results/vllm ours=results/reference --out matrix.html
    """
    from pabench.report.matrix_page import write_matrix

    out = Path("matrix.html") if out is None and markdown is None else out
    write_matrix(results, out=out, markdown=markdown)
    for path in filter(None, (out, markdown)):
        print(path)
