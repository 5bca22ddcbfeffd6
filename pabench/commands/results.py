"""What is on disk: runs listed, shown, exported, and followed over time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pabench.commands.options import AsJson
from pabench.errors import UsageError

app = typer.Typer()
_results = typer.Typer(no_args_is_help=True, help="List, show and export runs.")
app.add_typer(_results, name="results")

Folders = Annotated[list[Path] | None, typer.Argument(help="Folders that hold runs (results by default).")]


@_results.command("list")
def list_runs(folders: Folders = None, as_json: AsJson = False) -> None:
    """List all runs below the folders: what was run, how it ended, whether it may be believed.

    Example: pabench results list results
    """
    from pabench.analysis.sides import read_all
    from pabench.terminal.results import show_runs

    runs, problems = read_all(folders or [Path("results")])
    show_runs(runs, problems, as_json=as_json)


@_results.command("show")
def show(
    folder: Annotated[Path, typer.Argument(help="One run folder.")], as_json: AsJson = False,
) -> None:
    """Show one run: its figures, and how it was measured.

    Example: pabench results show results/20261125-1700-chat
    """
    from pabench.analysis import load_run
    from pabench.terminal.results import show_manifest
    from pabench.terminal.runs import show_run

    if not as_json:
        show_manifest(load_run(folder).manifest)
    show_run(folder, as_json=as_json)


@_results.command("export")
def export(
    folders: Folders = None,
    form: Annotated[str, typer.Option("--format", help="json or csv (every figure of every run), vllm (as vllm bench "
                                                       "serve saves it), bencher (its metric format), markdown.")]
    = "json",
    out: Annotated[Path | None, typer.Option(help="File to write; standard output by default.")] = None,
) -> None:
    """Write runs in a shape that other tools read.

    Example: pabench results export results/mine --format bencher --out bmf.json
    """
    from pabench.analysis.export import FORMATS, exported
    from pabench.load.records import write_atomic

    if form not in FORMATS:
        raise UsageError(f"--format is {form!r}, expected one of {', '.join(FORMATS)}")
    text = exported(folders or [Path("results")], form)
    if out is None:
        print(text, end="")
    else:
        write_atomic(out, text.encode(errors="replace"))
        print(out)


@app.command()
def history(
    folders: Folders = None,
    metric: Annotated[list[str] | None, typer.Option(help="Figure to follow (repeatable).")] = None,
    plot: Annotated[Path | None, typer.Option(help="HTML file to draw it in.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find where a figure stepped in the runs of one engine under one load, and between which versions.

    Example: pabench history results --metric tpot_p50_ms --plot history.html
    """
    from pabench.analysis.history import DEFAULT_METRICS, histories
    from pabench.analysis.sides import read_all
    from pabench.report.history_page import write_history
    from pabench.terminal.results import show_histories

    runs, problems = read_all(folders or [Path("results")])
    found = histories(runs, metric or DEFAULT_METRICS)
    if plot is not None:
        write_history(found, plot)
    show_histories(found, problems, as_json=as_json)
