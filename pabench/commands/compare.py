"""Runs against runs: compared, or judged by the gate, from disk or by turns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pabench.commands.options import (
    AsJson,
    DialectName,
    KeyVariable,
    LoadSeed,
    NumRequests,
    ProbeName,
    Quiet,
    ReadyTimeout,
    WorkloadName,
    api_key_in,
    new_folder,
    require_new,
)
from pabench.errors import UsageError

if TYPE_CHECKING:
    from pabench.gate import Decision

app = typer.Typer()
_gate = typer.Typer(invoke_without_command=True)
app.add_typer(_gate, name="gate")

PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="TOML file of what decides, and how sure it must be."),
]


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders with runs; the first is what the others are set "
                                                       "against.")],
    metric: Annotated[list[str] | None, typer.Option(help="Only this figure, e.g. tpot_p90_ms (repeatable).")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set runs side by side: each figure, its ratio to the first folder's, and how sure that is.

    Example: pabench compare results/vllm-0.31 results/vllm-0.32
    """
    from pabench.analysis.compare import DEFAULT_METRICS, set_names
    from pabench.analysis.compare import compare as compare_folders
    from pabench.terminal.results import show_compared

    found = compare_folders(folders, metric or DEFAULT_METRICS,
                            note=lambda text: print(f"pabench: note: {text}", file=sys.stderr))
    show_compared(found, set_names(folders)[0], as_json=as_json, markdown=markdown)


@_gate.callback()
def gate(
    context: typer.Context,
    baseline: Annotated[Path | None, typer.Option(help="Folder with the baseline's runs.")] = None,
    candidate: Annotated[Path | None, typer.Option(help="Folder with the candidate's runs.")] = None,
    policy: PolicyFile = None,
    out: Annotated[Path | None, typer.Option(help="New folder for gate.json, gate.md and junit.xml.")] = None,
    as_json: AsJson = False,
) -> None:
    """Is the candidate worse than the baseline? Judges runs that are on disk; `run` measures them first.

    Exit 0 not worse, 1 a regression, 3 cannot tell, 2 could not run. Needs several runs a side, for it judges by how
    much runs differ: `pabench gate run` makes them, by turns.

    Example: pabench gate --baseline results/gate/baseline --candidate results/gate/candidate
    """
    if context.invoked_subcommand is not None:
        if baseline or candidate or policy or out or as_json:
            raise UsageError("give the options of `pabench gate run` behind the word run")
        return
    if baseline is None or candidate is None:
        raise UsageError("a gate on stored runs needs --baseline FOLDER and --candidate FOLDER; `pabench gate run "
                         "--help` tells how to measure them")
    from pabench.gate import judge_folders, load_policy

    if out is not None:
        require_new(out)
    found = judge_folders(baseline, candidate, load_policy(policy))
    _finish(found, out, as_json)


@_gate.command("run")
def gate_run(
    baseline: Annotated[str, typer.Option("--baseline", "--a", help="URL of the baseline engine, or the command that "
                                                                    "starts it, {port} standing for its port.")],
    candidate: Annotated[str, typer.Option("--candidate", "--b", help="The same of the engine to be judged.")],
    workload: WorkloadName,
    users: Annotated[int | None, typer.Option(help="Closed loop with this many users.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop at this many requests a second.")] = None,
    num_requests: NumRequests = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop sending after this many seconds in each run.")] = None,
    profile: Annotated[str, typer.Option(help="Ask both for conformance first: none, smoke, ci or full.")] = "none",
    policy: PolicyFile = None,
    max_pairs: Annotated[int | None, typer.Option(help="Budget: pairs of starts, at most.")] = None,
    turns: Annotated[int, typer.Option(help="Runs of each side a start, by turns; from 2 on both engines are up at "
                                            "once, and both must fit.")] = 1,
    out: Annotated[Path | None, typer.Option(help="New folder (results/<time>-gate by default).")] = None,
    seed: LoadSeed = None,
    dialect: DialectName = None, probe: ProbeName = None, api_key_env: KeyVariable = None,
    ready_timeout_s: ReadyTimeout = 600.0, as_json: AsJson = False, quiet: Quiet = False,
) -> None:
    """Put one load on two engines by turns (ABBA) until it can be told which is worse, or the budget ends.

    Exit 0 not worse, 1 a regression, a wrong token or a new conformance failure, 3 cannot tell, 2 could not run.

    Example: pabench gate run --baseline "vllm serve probe --port {port}" --candidate "/new/vllm serve probe --port
    {port}" --workload sharegpt-mini --profile smoke
    """
    from pabench.conformance.profiles import load_profile
    from pabench.gate import GateRun, Side, load_policy
    from pabench.load import load_workload

    plan = load_workload(workload, users=users, rate_per_s=rate, num_requests=num_requests, duration_s=duration_s)
    rules = load_policy(policy).within(max_pairs)
    if profile != "none":
        load_profile(profile)
    key = api_key_in(api_key_env)
    sides = tuple(Side(name, where, dialect, probe, key, ready_timeout_s, api_key_env)
                  for name, where in (("baseline", baseline), ("candidate", candidate)))
    folder = out or new_folder("gate")
    require_new(folder)
    silent = quiet or as_json
    first = plan.seed if seed is None else seed
    work = GateRun((sides[0], sides[1]), plan, rules, folder, first, profile, turns, _teller(silent), silent)
    work.examine_urls()
    _finish(work.run(), folder, as_json)


def _teller(quiet: bool) -> Callable[[str], None]:
    from rich.markup import escape

    from pabench.engines.cleaning import WHOLE, clean
    from pabench.terminal.live import console

    out = console(quiet=quiet)
    return lambda text: out.print(f"[bold]»[/bold] {escape(clean(text, WHOLE))}")


def _finish(found: Decision, folder: Path | None, as_json: bool) -> None:
    """Write, show, exit."""
    from pabench.gate.words import decision_json, write_decision
    from pabench.terminal.results import show_decision

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_decision(found, folder)
    if as_json:
        print(decision_json(found).decode())
    else:
        show_decision(found, folder)
    raise SystemExit(found.exit_code)
