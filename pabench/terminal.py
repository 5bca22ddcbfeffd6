"""What a user sees in the terminal: live progress, tables, and the end of a bench. Engine-supplied text is cleaned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pabench.analysis import RunSummary, comparison_table, load_run, summarise, throughput_table
from pabench.analysis.compare import Compared
from pabench.analysis.compare_words import compared_markdown, compared_notes, compared_table
from pabench.analysis.tables import UNKNOWN, knee
from pabench.bench import EngineResult
from pabench.capacity import SLO, Capacity, Tried
from pabench.conformance.kills import Kill, Question, cell, kill_table
from pabench.conformance.levels import SUITE_LEVELS
from pabench.engines.cleaning import clean
from pabench.engines.doctor import Examination
from pabench.gate import Decision
from pabench.gate.words import advice, decision_table
from pabench.load import Progress as ProgressCallback
from pabench.load import ProgressState, Workload
from pabench.report import write_report

_WHOLE = 2000  # characters: our own sentence around an engine's last words is not cut


def console(*, quiet: bool = False) -> Console:
    """Where live views go: stderr, so that stdout stays a script's."""
    return Console(stderr=True, quiet=quiet, highlight=False)


def show_examination(examination: Examination, url: str) -> None:
    """What `doctor` found, as a table on stdout."""
    facts, kv = examination.facts, examination.facts.kv
    rows = {
        "engine": f"{facts.dialect} {facts.version or ''}".strip(),
        "model": facts.model,
        "KV probe": examination.probe.preset if examination.probe else "no: answers cannot be verified",
        "longest sequence": _tokens(facts.max_context_tokens),
        "block size": _tokens(kv.block_size if kv else None),
        "blocks": _number(kv.num_blocks if kv else None),
        "KV capacity": _tokens(kv.capacity_tokens if kv else None),
        "prefix caching": {True: "on", False: "off", None: UNKNOWN}[kv.prefix_caching if kv else None],
        "can": ", ".join(sorted(facts.capabilities)) or UNKNOWN,
        "metrics": "\n".join(examination.metrics_found) or "none that pabench knows",
        "notes": "\n".join(examination.notes) or UNKNOWN,
    }
    table = Table(title=f"What is at {escape(url)}", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape("\n".join(clean(line) for line in value.splitlines())))
    Console(highlight=False).print(table)


def show_summaries(summaries: Sequence[RunSummary]) -> None:
    """The final table, on stdout."""
    out = Console(highlight=False)
    out.print(comparison_table(summaries))
    for summary in summaries:
        if not summary.validity.valid:
            out.print(f"INVALID {escape(clean(summary.label))}, {summary.load}: "
                      f"{escape('; '.join(summary.validity.reasons))}")
        for text in summary.diagnoses:
            out.print(escape("\n".join(clean(line) for line in text.splitlines())), style="red")


def summary_json(summaries: Sequence[RunSummary]) -> str:
    """Summaries as a JSON list; None is null."""
    return orjson.dumps([asdict(summary) for summary in summaries], default=str).decode()


def show_sweep(summaries: Sequence[RunSummary], folder: Path, *, as_json: bool) -> None:
    """What a sweep came to, on stdout."""
    if as_json:
        print(summary_json(summaries))
        return
    if not summaries:
        return
    show_summaries(summaries)
    best = knee(summaries)
    out = Console(highlight=False)
    if best is not None and len(summaries) > 1:
        out.print(f"knee (highest throughput / mean latency): {escape(clean(best.load))}")
    out.print(f"runs: {escape(str(folder))}")


def tried_text(tried: Tried) -> str:
    """One rate of a search, and what came of it."""
    return (f"{tried.rate_per_s:.3g} req/s: {tried.verdict}, {tried.attained.share:.0%} of {tried.attained.total} in "
            f"time ({tried.low:.0%} to {tried.high:.0%})")


def show_capacity(found: Capacity, slo: SLO, folder: Path, *, as_json: bool) -> None:
    """What a search for the capacity came to, on stdout."""
    if as_json:
        print(orjson.dumps({"slo": asdict(slo), **asdict(found)}).decode())
        return
    out = Console(highlight=False)
    table = Table(title=f"In time: {slo.text}", title_justify="left")
    for name in ("requests/s", "in time", "of", "95 % interval", "verdict"):
        table.add_column(name, justify="right")
    for each in sorted(found.tried, key=lambda tried: tried.rate_per_s):
        table.add_row(f"{each.rate_per_s:.3g}", f"{each.attained.share:.1%}", str(each.attained.total),
                      f"{each.low:.1%} – {each.high:.1%}", each.verdict)
    out.print(table)
    out.print(f"capacity: {found.text}")
    out.print(f"runs: {escape(str(folder))}")


@contextmanager
def live_load(workload: Workload, label: str, *, quiet: bool = False) -> Iterator[ProgressCallback]:
    """A live line for one load on stderr; the context is the callback that moves it."""
    out = console(quiet=quiet)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"), console=out, disable=quiet,
    )
    name = escape(f"{clean(label)}, {workload.load_text}")
    with bar:
        task = bar.add_task(name, total=workload.num_requests, now="warming up")

        def show(state: ProgressState) -> None:
            bar.update(task, completed=state.done, total=state.total, now=_now(state))

        yield show


def _now(state: ProgressState) -> str:
    rate = state.output_tokens / state.elapsed_s if state.elapsed_s > 0 else 0.0
    parts = [f"{state.in_flight} in flight", f"{rate:,.0f} tok/s"]
    if state.running is not None:
        parts.append(f"running {state.running:.0f}")
    if state.kv_usage is not None:
        parts.append(f"KV {state.kv_usage:.0%}")
    if state.errors:
        parts.append(f"[red]{state.errors} errors[/red]")
    return "  ".join(parts)


def _tokens(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,} tokens"


def _number(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


def show_run(folder: Path, *, as_json: bool) -> None:
    """The end of one run: table, or JSON."""
    summary = summarise(load_run(folder))
    if as_json:
        print(summary_json([summary]))
        return
    show_summaries([summary])
    print(f"records: {folder}")


def show_kill(place: int, count: int, question: Question, kill: Kill) -> None:
    """One answer of `pabench mutants` as it comes, on stderr."""
    style = "green" if kill.good else "red"
    console().print(f"{place:3}/{count} [{style}]{kill.outcome}[/{style}] {question.mutant.name} at {question.level} "
                    f"({kill.duration_s:.1f} s)")


def show_kills(kills: Sequence[Kill]) -> None:
    """The table of mutants by levels, on stdout."""
    shown = Table(title="What killed the mutants", title_justify="left")
    for title in ("mutant", *SUITE_LEVELS):
        shown.add_column(title, overflow="fold")
    for row in kill_table(kills):
        shown.add_row(*(escape(clean(text, _WHOLE)) for text in row))
    out = Console(highlight=False)
    out.print(shown)
    bad = [kill for kill in kills if not kill.good]
    out.print(f"{len(kills) - len(bad)} of {len(kills)} as they must be")
    for kill in bad:
        out.print(f"{escape(kill.mutant)} at {kill.level}: {escape(clean(cell(kill), _WHOLE))}")


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
        out.print(escape(clean(failure, _WHOLE)), style="bold red")
    for note in found.notes:
        out.print(escape(clean(note, _WHOLE)), style="yellow")
    out.print(f"[bold]{found.outcome}[/bold]: {escape(clean(advice(found), _WHOLE))}")
    if folder is not None:
        out.print(f"records: {escape(str(folder))}")


class TerminalNarrator:
    """`bench.Narrator` on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = console(quiet=quiet)

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        self._console.print(f"[bold]»[/bold] {escape(clean(text, _WHOLE))}")

    def load(self, workload: Workload, label: str) -> AbstractContextManager[ProgressCallback]:
        """Show one load while it runs."""
        return live_load(workload, label, quiet=self.quiet)


def finish_bench(results: Sequence[EngineResult], folder: Path, *, as_json: bool) -> None:
    """The end of a bench, also of one that was cut short: the report, the table, the verdicts."""
    runs = [[summarise(load_run(run)) for run in result.runs if (run / "requests.parquet").exists()]
            for result in results]
    num_runs = sum(map(len, runs))
    if num_runs:
        write_report([folder], folder / "report.html")
    if as_json:
        print(summary_json([summary for per_engine in runs for summary in per_engine]))
        return
    if num_runs:
        show_summaries([per_engine[-1] for per_engine in runs if per_engine])
    out = Console(highlight=False)
    if len(measured := [per_engine for per_engine in runs if per_engine]) > 1:
        out.print(throughput_table(measured))
    for result in results:
        out.print(f"{escape(clean(result.label))}: {escape(clean(result.verdict, _WHOLE))}")
    if num_runs:
        out.print(f"all {num_runs} runs: {folder / 'report.html'}")
