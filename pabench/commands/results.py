"""What is on disk: runs listed, shown, exported, followed over time; and published figures beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pabench.commands.options import AsJson, need_engine
from pabench.errors import EXIT_COULD_NOT_RUN, UsageError

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
    folder: Annotated[Path, typer.Argument(help="One run folder, or one that `pabench capacity` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Show one run: its figures, and how it was measured; or what a search for the capacity came to.

    Example: pabench results show results/20261125-1700-chat
    """
    from pabench.analysis import load_run, summarise
    from pabench.capacity import CAPACITY_FILE, read_search
    from pabench.terminal.results import show_latencies, show_manifest
    from pabench.terminal.runs import show_capacity, show_run

    if (folder / CAPACITY_FILE).exists():
        show_capacity(read_search(folder / CAPACITY_FILE), folder, as_json=as_json)
        return
    run = load_run(folder)
    summary = summarise(run)
    if not as_json:
        show_manifest(run.manifest)
        show_latencies(run, summary)
    show_run(summary, as_json=as_json)


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


@app.command()
def claims(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="These alone; all by default.")] = None,
    traces: Annotated[Path | None, typer.Option(help="Folder with public traces, as their publishers name them.")]
    = None,
    scale: Annotated[float, typer.Option(help="Multiplies the sizes of simulations and measurements.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same lengths and prompts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, which `pabench report` shows.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write the table to.")] = None,
) -> None:
    """Set published figures of paged attention beside what this machine makes of them.

    Exit 0 when each was reproduced, differs for a stated reason, or is said not to be shown; 2 when one failed to run.
    Needs the extra `engine`.

    Example: pabench claims --traces traces --markdown claims.md
    """
    need_engine()
    from pabench.claims import ERROR, Result, claims_markdown, load_claims, write_claims
    from pabench.claims import show_claims as show_all
    from pabench.load.records import write_atomic
    from pabench.report.build import check_out
    from pabench.terminal.results import show_claim, show_claims

    for file in filter(None, (out, markdown)):
        check_out(file)
    results: list[Result] = []
    try:
        show_all(load_claims(ids or ()), results, traces=traces, scale=scale, seed=seed, told=show_claim)
    finally:
        if results:  # an interrupted one has results too
            show_claims(results)
            if out is not None:
                write_claims(results, out)
            if markdown is not None:
                shown = " ".join(["pabench claims", *(ids or ()), f"--scale {scale:g} --seed {seed}"])
                write_atomic(markdown, claims_markdown(results, shown + (" --traces …" if traces else "")).encode())
    if any(one.verdict == ERROR for one in results):
        raise SystemExit(EXIT_COULD_NOT_RUN)
