"""Searches: what an engine is, found by trying, beside what it says it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from pabench.commands.options import (
    AsJson,
    DialectName,
    KeyVariable,
    LoadSeed,
    ModelName,
    ProbeName,
    Quiet,
    Url,
    api_key_in,
    examined,
    new_folder,
    require_new,
)
from pabench.errors import EXIT_NOT_CONFORMING, EXIT_OK

app = typer.Typer()


@app.command("working-set")
def working_set(
    url: Url,
    max_tokens: Annotated[int | None, typer.Option(help="Largest working set to try, tokens (by default twice the "
                                                        "capacity that the engine states, else 131072).")] = None,
    max_seconds: Annotated[float, typer.Option(help="Longest the whole may take.")] = 600.0,
    precision: Annotated[float, typer.Option(help="Relative gap between what fits and what does not.")] = 0.05,
    out: Annotated[Path | None, typer.Option(help="New folder (results/<time>-working-set by default).")] = None,
    seed: LoadSeed = 0,
    dialect: DialectName = None, model: ModelName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Measure block size, recompute cost, usable prefix cache and onset of preemption, beside what the engine states.

    Nobody else may use the engine meanwhile. Exit 1 where an answer was wrong.

    Example: pabench working-set --url http://127.0.0.1:8000
    """
    import orjson
    from rich.markup import escape

    from pabench.load.records import write_atomic
    from pabench.terminal.live import console
    from pabench.terminal.working_set import show_working_set
    from pabench.workingset import Options, WorkingSet, measure_working_set

    options = Options(max_tokens, max_seconds, precision, seed)
    key, folder = api_key_in(api_key_env), out or new_folder("working-set")
    require_new(folder)
    found = WorkingSet(examined(url, dialect, probe, api_key_env, model=model), options)
    live = console(quiet=quiet or as_json)
    try:
        asyncio.run(measure_working_set(found, url, api_key=key, progress=lambda text: live.print(escape(text))))
    finally:
        if found.asked:  # one that was broken off has found something too
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "working-set.json", orjson.dumps(found.to_json(), option=orjson.OPT_INDENT_2))
            show_working_set(found, folder, as_json=as_json)
    raise SystemExit(EXIT_NOT_CONFORMING if found.wrong else EXIT_OK)
