"""Searches: where an engine bends, and what it is, found by trying, beside what it says it is."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

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
    WorkloadName,
    api_key_in,
    bounds,
    examined,
    new_folder,
    require_here,
    require_new,
)
from pabench.errors import EXIT_INCONCLUSIVE, EXIT_NOT_CONFORMING, EXIT_OK, PabenchError

app = typer.Typer()


@app.command()
def sweep(
    url: Url,
    workload: WorkloadName,
    users: Annotated[str | None, typer.Option(help="Closed loops with so many users each, e.g. 1,4,16.")] = None,
    rates: Annotated[str | None, typer.Option(help="Open loops at so many requests a second each, e.g. 1,2,4.")] = None,
    num_requests: NumRequests = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop sending after this many seconds in each run.")] = None,
    ttft_ms: TtftBound = None, tpot_ms: TpotBound = None, deadline_ms: DeadlineBound = None,
    out: Annotated[Path | None, typer.Option(help="New folder (results/<time>-sweep by default).")] = None,
    label: Label = None,
    seed: LoadSeed = None,
    calibrate: Calibrate = False,
    workers: Workers = 1, ray: RayAddress = None,
    dialect: DialectName = None, model: ModelName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Put one workload on an engine at several loads in turn: throughput and latency, and the knee between them.

    The runs are those of `pabench run`: `pabench report` draws them. Exit 0 when every answer was right, 1 when not.

    Example: pabench sweep --url http://127.0.0.1:8000 --workload sharegpt-mini --users 1,4,16,64
    """
    from pabench.bench_suite import folder_name
    from pabench.load import Placement, load_workload, sweep_loads
    from pabench.load.planning import plan as plan_load
    from pabench.series import Series
    from pabench.terminal.live import live_load
    from pabench.terminal.runs import show_sweep

    require_here(ray, calibrate=calibrate)
    placement = Placement(workers, ray)
    slo = bounds(ttft_ms=ttft_ms, tpot_ms=tpot_ms, deadline_ms=deadline_ms)
    plans = [load_workload(workload, num_requests=num_requests, duration_s=duration_s, slo=slo, **load)
             for load in sweep_loads(users, rates)]
    key, folder, silent = api_key_in(api_key_env), out or new_folder("sweep"), quiet or as_json
    require_new(folder)
    examination = examined(url, dialect, probe, api_key_env, plans[0].timeout_s, model=model)
    series = Series(examination, url, label or examination.facts.dialect, plans[0].seed if seed is None else seed,
                    partial(live_load, quiet=silent, api_key=key), key, placement, calibrate)
    for number, plan in enumerate(plans):  # what a later load cannot have is said before the first is run
        series.require(plan)
        plan_load(plan, series.seed + number, examination.facts, examination.probe, "")
    summaries, flawless = [], True
    try:
        for number, plan in enumerate(plans):
            run, summary = series.run(number, plan, folder / f"{number:02}-{folder_name(plan.load_text)}")
            summaries.append(summary)
            flawless &= run.manifest.flawless
            if run.manifest.failure is not None:
                raise PabenchError(run.manifest.failure)
    finally:
        show_sweep(summaries, folder, as_json=as_json)
    raise SystemExit(EXIT_OK if flawless else EXIT_NOT_CONFORMING)


@app.command()
def capacity(
    url: Url,
    workload: WorkloadName,
    ttft_ms: TtftBound = None, tpot_ms: TpotBound = None, deadline_ms: DeadlineBound = None,
    share: Annotated[float, typer.Option(help="So many of the requests have to be in time.")] = 0.9,
    from_rate: Annotated[float, typer.Option(help="Lowest rate to try, requests (or sessions) a second.")] = 0.5,
    to_rate: Annotated[float, typer.Option(help="Highest rate to try.")] = 1024.0,
    duration_s: Annotated[float, typer.Option(help="Length of each run, seconds.")] = 30.0,
    precision: Annotated[float, typer.Option(help="Relative gap between what is enough and too much.")] = 0.1,
    tries: Annotated[int, typer.Option(help="Runs of one rate, at most.")] = 3,
    out: Annotated[Path | None, typer.Option(help="New folder (results/<time>-capacity by default).")] = None,
    label: Label = None,
    seed: LoadSeed = None,
    workers: Workers = 1, ray: RayAddress = None,
    dialect: DialectName = None, model: ModelName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Find the highest rate at which nearly all requests are answered in time, and say how sure that is.

    The folder gets capacity.json and the runs: `pabench report` shows them, `pabench results show` the conclusion.
    Exit 3 where no rate is surely enough or too much.

    Example: pabench capacity --url http://127.0.0.1:8000 --workload poisson --ttft-ms 500 --tpot-ms 50
    """
    from pabench.analysis.slo import SLO
    from pabench.capacity import CONFIDENCE, Search, Tried, conclusion, require_enough, require_range, search_capacity
    from pabench.capacity_runs import CapacityRuns, require_searchable
    from pabench.load import Placement, load_workload
    from pabench.series import Series
    from pabench.terminal.live import console, live_load
    from pabench.terminal.runs import show_capacity, tried_text

    slo, placement = SLO(ttft_ms, tpot_ms, share, deadline_ms), Placement(workers, ray)
    require_range(from_rate=from_rate, to_rate=to_rate, precision=precision, tries=tries)
    asked = load_workload(workload, rate_per_s=from_rate, duration_s=duration_s)
    if asked.session is None:  # a session brings several requests, nobody knows how many
        require_enough(slo, from_rate=from_rate, duration_s=duration_s, tries=tries)
    key, folder, silent = api_key_in(api_key_env), out or new_folder("capacity"), quiet or as_json
    require_new(folder)
    examination = examined(url, dialect, probe, api_key_env, asked.timeout_s, model=model)
    require_searchable(asked, examination.facts)
    series = Series(examination, url, label or examination.facts.dialect, asked.seed if seed is None else seed,
                    partial(live_load, quiet=silent, api_key=key), key, placement)
    tried: list[Tried] = []
    ended_by = "interrupted"

    def note(one: Tried) -> None:
        tried.append(one)
        console(quiet=silent).print(tried_text(one, asked.rate_unit))

    try:
        found = search_capacity(CapacityRuns(series, asked, slo, folder), slo, from_rate=from_rate, to_rate=to_rate,
                                precision=precision, tries=tries, confidence=CONFIDENCE, progress=note)
        ended_by = ""
    except PabenchError as error:
        ended_by = str(error)
        raise
    finally:
        if tried:  # a search that was broken off has found something too
            search = Search(label=series.label, workload=asked.name, slo=slo, confidence=CONFIDENCE,
                            finished=not ended_by, ended_by=ended_by, capacity=conclusion(tried, asked.rate_unit))
            search.write(folder)
            show_capacity(search, folder, as_json=as_json)
    raise SystemExit(EXIT_INCONCLUSIVE if found.inside is None and found.outside is None else EXIT_OK)


@app.command("working-set")
def working_set(
    url: Url,
    max_tokens: Annotated[int | None, typer.Option(help="Largest working set to try, tokens (by default twice the "
                                                        "capacity that the engine states, else 131072).")] = None,
    max_seconds: Annotated[float, typer.Option(help="Longest the whole may take.")] = 600.0,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for one answer of the examination, seconds.")] = 60.0,
    precision: Annotated[float, typer.Option(help="Relative gap between what fits and what does not.")] = 0.05,
    out: Annotated[Path | None, typer.Option(help="New folder (results/<time>-working-set by default).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same prompts.")] = 0,
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
    found = WorkingSet(examined(url, dialect, probe, api_key_env, timeout_s, model), options)
    live = console(quiet=quiet or as_json)
    try:
        asyncio.run(measure_working_set(found, url, api_key=key, progress=lambda text: live.print(escape(text))))
    finally:
        if found.asked:  # one that was broken off has found something too
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "working-set.json", orjson.dumps(found.to_json(), option=orjson.OPT_INDENT_2))
            show_working_set(found, folder, as_json=as_json)
    raise SystemExit(EXIT_NOT_CONFORMING if found.wrong else EXIT_OK)
