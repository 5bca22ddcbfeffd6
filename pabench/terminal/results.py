"""What is on disk: lists, comparisons, histories, a gate's decision. Engine-supplied text is cleaned."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pabench.analysis.compare import Compared
from pabench.analysis.compare_words import compared_markdown, compared_notes, compared_table
from pabench.analysis.export import flat_row
from pabench.analysis.history import MIN_RUNS, History
from pabench.analysis.measures import measure
from pabench.analysis.runs import Run
from pabench.analysis.sides import Measured
from pabench.analysis.summary import Quantiles, RunSummary
from pabench.analysis.within import interval
from pabench.claims import DIFFERS, ERROR, NOT_SHOWN, REPRODUCED, Result
from pabench.engines.cleaning import WHOLE, clean
from pabench.gate import Decision
from pabench.gate.words import advice, decision_table
from pabench.load.manifest import Manifest
from pabench.telemetry.vocabulary import UNKNOWN
from pabench.terminal.live import console

_ROOM_FOR_FOLDERS = 120  # columns
_FEW = 100  # samples: the p99 of fewer is about the largest of them


def show_compared(found: Sequence[Compared], first_name: str, *, as_json: bool, markdown: bool) -> None:
    """Sets of runs side by side, on stdout."""
    if as_json:
        print(orjson.dumps([asdict(each) for each in found]).decode())
        return
    if markdown:
        print(compared_markdown(found, first_name), end="")
        return
    out = Console(highlight=False)
    out.print(compared_table(found, first_name))
    for note in compared_notes(found):
        out.print(escape(note), style="dim")


def show_decision(found: Decision, folder: Path | None) -> None:
    """What a gate says, on stdout."""
    out = Console(highlight=False)
    if found.metrics:
        out.print(decision_table(found))
    for failure in found.failures:
        out.print(escape(clean(failure, WHOLE)), style="bold red")
    for note in found.notes:
        out.print(escape(clean(note, WHOLE)), style="yellow")
    out.print(f"[bold]{found.outcome}[/bold]: {escape(clean(advice(found), WHOLE))}")
    if folder is not None:
        out.print(f"records: {escape(str(folder))}")


def show_runs(runs: Sequence[Measured], problems: Sequence[str], *, as_json: bool) -> None:
    """All runs, one a row, on stdout; what could not be read below them."""
    if as_json:
        print(orjson.dumps([flat_row(run) for run in runs]).decode())
        return
    out = Console(highlight=False)
    beside = out.width >= _ROOM_FOR_FOLDERS  # else numbered, and told below: a name in pieces cannot be copied
    table = Table()
    for name in ("UTC", "engine, load", "ok", "tokens/s", "TPOT\np50, ms", "verdict", "folder" if beside else "#"):
        numbers = name in ("ok", "tokens/s", "TPOT\np50, ms")
        table.add_column(name, overflow="fold", justify="right" if numbers else "left", no_wrap=numbers)
    for number, run in enumerate(runs, 1):
        one = run.summary
        tpot = measure(one, "tpot_p50_ms")
        table.add_row(
            run.manifest.started_at[5:16].replace("T", "\n"), Text(f"{clean(run.manifest.label)}\n{clean(run.load)}"),
            f"{one.outcomes.get('ok', 0)}/{sum(one.outcomes.values())}",
            f"{one.throughput_tokens_per_s:,.0f}", UNKNOWN if tpot is None else f"{tpot:.1f}",
            Text("VALID", "green") if one.validity.valid else Text(f"INVALID\n{one.status}", "yellow"),
            Text(str(one.path)) if beside else str(number),
        )
    out.print(table)
    for number, run in enumerate([] if beside else runs, 1):
        out.print(f"{number:3} {escape(str(run.summary.path))}", soft_wrap=True)
    for problem in problems:
        out.print(escape(f"not read: {clean(problem, WHOLE)}"), style="yellow")


def show_manifest(manifest: Manifest) -> None:
    """How a run was measured, on stdout."""
    host, engine, kv = manifest.host, manifest.engine, manifest.engine.kv
    rows = {
        "engine": f"{manifest.label}: {' '.join(filter(None, (engine.dialect, engine.version)))}, {engine.model}",
        "KV": UNKNOWN if kv is None or kv.block_size is None else f"{kv.num_blocks} blocks of {kv.block_size}",
        "started": f"{manifest.started_at} ({manifest.status})",
        "command": shlex.join(manifest.command),
        "workload": f"{manifest.workload.name}, {manifest.workload.load_text}, seed {manifest.seed}",
        "host": f"{host.cpu}, {host.cores} cores, Python {host.python}",
        "pabench": f"{manifest.versions.get('pabench')} {manifest.git_commit or ''}",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(clean(value, WHOLE)))
    Console(highlight=False).print(table)


_LATENCIES = {"ttft": "TTFT", "ttft_intended": "TTFT, intended", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}


def show_latencies(run: Run, summary: RunSummary) -> None:
    """Every latency of one run, with 95 % intervals as its own requests tell them, on stdout; and what lies outside
    the window that throughput is taken from.
    """
    out, table = Console(highlight=False), Table()
    for name in ("ms", "samples", "p50\n95 %", "p90", "p99\n95 %", "max"):
        table.add_column(name, justify="left" if name == "ms" else "right", overflow="fold")
    for name, shown in _LATENCIES.items():
        found: Quantiles | None = getattr(summary, f"{name}_ms")
        if found is not None:
            p99 = (_with_interval(run, name, "p99", found.p99) if found.count >= _FEW else
                   f"{found.p99:,.1f}\nof {found.count} only")
            table.add_row(shown, f"{found.count:,}", _with_interval(run, name, "p50", found.p50), f"{found.p90:,.1f}",
                          p99, f"{found.max:,.1f}")
    if table.row_count:
        out.print(table)
    if summary.itl_spread_share:
        out.print(f"{summary.itl_spread_share:.0%} of ITL's samples are even parts of a chunk's gap: it brought "
                  "several tokens")
    start_s, end_s = summary.window_s
    outside = [f"{what} {rate:,.0f} in {seconds:.1f} s" for what, rate, seconds in (
        ("ramp", summary.ramp_tokens_per_s, start_s),
        ("drain", summary.drain_tokens_per_s, summary.duration_s - end_s)) if rate is not None]
    out.print(f"steady window {start_s:.1f} to {end_s:.1f} s of {summary.duration_s:.1f} s"
              + (f"; output tokens/s outside it: {', '.join(outside)}" if outside else ""))


def _with_interval(run: Run, name: str, statistic: str, value: float) -> str:
    found = interval(run, f"{name}_{statistic}_ms")
    return f"{value:,.1f}" + ("" if found is None else f"\n{found[0]:,.1f} – {found[1]:,.1f}")


def show_histories(found: Sequence[History], problems: Sequence[str], *, as_json: bool) -> None:
    """Where figures stepped, on stdout."""
    if as_json:
        print(orjson.dumps([asdict(each) for each in found]).decode())
        return
    out = Console(highlight=False)
    told = [each for each in found if each.steps or len(each.points) >= 2 * MIN_RUNS]
    for each in told:
        name = f"{each.label}, {each.load}: {each.metric}, {len(each.points)} runs"
        out.print(escape(clean(name)), style="bold")
        for step in each.steps:
            out.print(f"  {escape(clean(step.text, WHOLE))}", style="red" if step.worse else "green")
        if not each.steps:
            out.print("  no step")
    if len(told) < len(found):
        most = max(len(each.points) for each in found if each not in told)
        out.print(f"too few runs to tell of {len(found) - len(told)} of {len(found)} figures (of an engine under a "
                  f"load): {2 * MIN_RUNS} are needed, {most} at most are there")
    for problem in problems:
        out.print(escape(f"not read: {clean(problem, WHOLE)}"), style="yellow")


def show_claim(place: int, count: int, result: Result) -> None:
    """One claim as it comes, on stderr."""
    console().print(f"{place:3}/{count} [{_VERDICT[result.verdict]}]{result.verdict}[/] {result.claim.id}")


def show_claims(results: Sequence[Result]) -> None:
    """The table of claims, on stdout."""
    table = Table(title="Published claims", title_justify="left", show_lines=True)
    for name in ("claim", "published", "ours", "verdict"):
        table.add_column(name, overflow="fold")
    for one in results:
        why = f"\n{one.why}" if one.why and one.verdict != REPRODUCED else ""
        table.add_row(escape(f"{one.claim.id}: {one.claim.claim}\n({one.claim.source})"), escape(one.claim.published),
                      escape(one.ours), f"[{_VERDICT[one.verdict]}]{one.verdict}[/]{escape(why)}")
    Console(highlight=False).print(table)


_VERDICT = {REPRODUCED: "green", DIFFERS: "yellow", NOT_SHOWN: "dim", ERROR: "bold red"}
