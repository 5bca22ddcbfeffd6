"""Options that several commands have, and what they are turned into."""

from __future__ import annotations

import asyncio
import os
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pabench.errors import UsageError

if TYPE_CHECKING:  # each command imports what it needs, so that `--help` is quick
    from pabench.engines.doctor import Examination

_results: ContextVar[Path | None] = ContextVar("results", default=None)

Url = Annotated[str, typer.Option("--url", help="Where the engine listens, e.g. http://127.0.0.1:8000")]
OptionalUrl = Annotated[str | None, typer.Option("--url", help="Where an engine listens, e.g. http://127.0.0.1:8000")]
Launch = Annotated[
    str | None,
    typer.Option("--launch", help="Start the engine with this command, {port} standing for its port, and again when "
                                  "it has died."),
]
ReadyTimeout = Annotated[
    float, typer.Option("--ready-timeout-s", help="Longest wait for a launched engine to serve, seconds."),
]
Impl = Annotated[
    str | None,
    typer.Option("--impl", help="Instead of a URL, an implementation in process: reference-paged or another that "
                                "ships, package.module:factory, or path/to/file.py:factory."),
]
DialectName = Annotated[str | None, typer.Option("--dialect", help="Do not detect the dialect; take this one.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Of several served models, the one to ask (the first by default)."),
]
ProbeName = Annotated[
    str | None,
    typer.Option("--probe", help="Preset or folder of the KV probe that is served (found out by default)."),
]
KeyVariable = Annotated[
    str | None,
    typer.Option("--api-key-env", help="Environment variable that holds the engine's API key."),
]
WorkloadName = Annotated[
    str, typer.Option("--workload", help="Name of a workload that ships with pabench, or a TOML file."),
]
Label = Annotated[str | None, typer.Option("--label", help="What to call the engine in tables and reports.")]
Calibrate = Annotated[bool, typer.Option(
    "--calibrate", help="After a run, measure the client's own error against the stub, at as many streams.")]
NumRequests = Annotated[int | None, typer.Option("--num-requests", help="How many requests in a run.")]
Workers = Annotated[
    int, typer.Option("--workers", help="Processes that carry the load: more than one where one's core is not enough."),
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", help="Spread the workers over the machines of this Ray cluster, e.g. auto or HOST:PORT "
                               "(needs pabench\\[ray])."),
]
TtftBound = Annotated[float | None, typer.Option("--ttft-ms", help="In time: first token, from the intended start.")]
TpotBound = Annotated[float | None, typer.Option("--tpot-ms", help="In time: mean gap between an answer's tokens.")]
DeadlineBound = Annotated[float | None, typer.Option(
    "--deadline-ms", help="In time: no reader waits who takes one token each so many ms, the first at --ttft-ms.")]
LoadSeed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=2**63 - 1,
                 help="Same seed, same prompts and schedule (by default the workload's own)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No live view.")]


def examined(
    url: str, dialect: str | None, probe: str | None, key_variable: str | None, timeout_s: float = 10.0,
    model: str | None = None,
) -> Examination:
    """What `doctor` finds at `url`."""
    from pabench.engines.doctor import examine

    key = api_key_in(key_variable)
    return asyncio.run(examine(url, dialect=dialect, probe=probe, model=model, timeout_s=timeout_s,
                               api_key=key, key_name=key_variable))


def api_key_in(variable: str | None) -> str | None:
    """The key in the variable that the caller names."""
    from pabench.engines.keys import key_in

    if variable is None:
        return None
    if variable not in os.environ:
        raise UsageError(f"--api-key-env names {variable!r}, which is not set in the environment")
    key = key_in(variable)
    if key is None:
        raise UsageError(f"--api-key-env names {variable!r}, which is empty")
    return key


def require_new(folder: Path) -> None:
    """Before any work: results are never overwritten, nor mixed with others."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is a file or holds something already: give a new folder with --out")
    results_in(folder)


def results_in(folder: Path | None) -> None:
    """The command that runs keeps its results there (None: nowhere yet), as `interrupted_text` tells."""
    _results.set(folder)


def interrupted_text() -> str:
    """What is said on Ctrl-C: where that which was measured is kept, if anything was."""
    folder = _results.get()
    if folder is None:
        return "interrupted"
    if not any(path.is_file() and path.suffix != ".log" for path in folder.rglob("*")):  # a launched engine's
        return "interrupted, before anything was measured"
    return f"interrupted; what was measured is kept in {folder}"


def require_here(ray: str | None, *, calibrate: bool) -> None:
    """Before any work: the stub of a calibration stands on this machine."""
    if ray is not None and calibrate:
        raise UsageError("--calibrate measures this machine's client against a stub beside it, and --ray spreads the "
                         "clients: leave one of them out, or run `pabench calibrate` on the machines")


def new_folder(name: str) -> Path:
    """Where results go by default: named after the time."""
    return Path("results") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


def need_engine() -> None:
    """Raise UsageError where the reference engine is not installed."""
    from importlib.util import find_spec

    if find_spec("reference_engine") is None or find_spec("torch") is None:
        raise UsageError("the reference engine needs torch: install it with `pip install 'pabench[engine]'`")


def bounds(**bounds_ms: float | None) -> dict[str, float] | None:
    """An SLO as a workload's field; None where none was given."""
    return {name: ms for name, ms in bounds_ms.items() if ms is not None} or None
