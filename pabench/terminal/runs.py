"""What loads came to: one run, a sweep, a search, a bench. Engine-supplied text is cleaned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pabench.analysis import RunSummary, comparison_table, load_run, summarise, throughput_table
from pabench.analysis.slo import percent
from pabench.analysis.tables import knee, knee_text
from pabench.bench import EngineResult
from pabench.capacity import Search, Tried
from pabench.engines.cleaning import WHOLE, clean
from pabench.load.calibrate import ClientError
from pabench.report import write_report
from pabench.telemetry.vocabulary import UNKNOWN


def show_run(summary: RunSummary, *, as_json: bool) -> None:
    """The end of one run: table, or JSON."""
    if as_json:
        print(summary_json([summary]))
        return
    show_summaries([summary])
    print(f"records: {summary.path}")


def show_summaries(summaries: Sequence[RunSummary]) -> None:
    """The final table, on stdout, and what is to be known of its runs."""
    Console(highlight=False).print(comparison_table(summaries))
    _show_remarks(summaries)


def _show_remarks(summaries: Sequence[RunSummary]) -> None:
    out = Console(highlight=False)
    for summary in summaries:
        name = f"{escape(clean(summary.label))}, {summary.load}"
        for priority, ttft in summary.ttft_ms_by_priority.items():
            out.print(f"{name}, priority {priority}: TTFT p50 {ttft.p50:,.0f}, p99 {ttft.p99:,.0f} ms, "
                      f"{ttft.count} requests")
        if not summary.validity.valid:
            out.print(f"INVALID {name}: {escape(clean('; '.join(summary.validity.reasons), WHOLE))}")
        for failed in summary.failures:
            out.print(f"{name}: {escape(clean(failed.text, WHOLE))}", style="red")
        if summary.other_failures:
            out.print(f"{name}: {summary.other_failures} more failed in other ways", style="red")
        for note in summary.notes:
            out.print(f"note: {name}: {escape(clean(note, WHOLE))}", style="yellow")
        for text in summary.diagnoses:
            out.print(escape("\n".join(clean(line) for line in text.splitlines())), style="red")


def summary_json(summaries: Sequence[RunSummary]) -> str:
    """Summaries as a JSON list; None is null."""
    return orjson.dumps([asdict(summary) for summary in summaries], default=str).decode()


def show_sweep(summaries: Sequence[RunSummary], folder: Path, *, as_json: bool) -> None:
    """What a sweep came to, on stdout."""
    if as_json:
        best = knee(summaries)
        at = None if best is None else {"load": best.load, "users": best.users, "rate_per_s": best.rate_per_s}
        told = {"folder": str(folder), "knee": at, "conclusion": knee_text(summaries),
                "runs": [asdict(summary) for summary in summaries]}
        print(orjson.dumps(told, default=str).decode())
        return
    if not summaries:
        return
    show_summaries(summaries)
    out = Console(highlight=False)
    if len(summaries) > 1:
        out.print(escape(clean(knee_text(summaries))))
    out.print(f"runs: {escape(str(folder))}")


def tried_text(tried: Tried, unit: str = "req/s") -> str:
    """One rate of a search, and what came of it."""
    attained = tried.attained
    return (f"{tried.rate_per_s:.3g} {unit}: {tried.verdict}, {percent(attained.share)} of {attained.total} in time "
            f"({percent(tried.low)} to {percent(tried.high)})")


def show_capacity(search: Search, folder: Path, *, as_json: bool) -> None:
    """What a search for the capacity came to, on stdout."""
    found = search.capacity
    if as_json:
        print(orjson.dumps({"folder": str(folder), "conclusion": search.text, "slo": asdict(search.slo),
                            **asdict(found)}).decode())
        return
    out = Console(highlight=False)
    table = Table(title=f"In time: {search.slo.text}", title_justify="left")
    for name in (found.unit, "in time", "of", f"{100 * search.confidence:g} % interval", "verdict"):
        table.add_column(name, justify="right")
    for each in sorted(found.tried, key=lambda tried: tried.rate_per_s):
        table.add_row(f"{each.rate_per_s:.3g}", f"{each.attained.share:.1%}", str(each.attained.total),
                      f"{each.low:.1%} – {each.high:.1%}", each.verdict)
    out.print(table)
    out.print(f"capacity: {escape(clean(search.text, WHOLE))}")
    out.print(f"runs: {escape(str(folder))}")


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
    out, measured = Console(highlight=False), [per_engine for per_engine in runs if per_engine]
    if measured:
        out.print(comparison_table([per_engine[-1] for per_engine in measured]))
    if len(measured) > 1:
        out.print(throughput_table(measured))
    _show_remarks([summary for per_engine in measured for summary in per_engine])
    for result in results:
        out.print(f"{escape(clean(result.label))}: {escape(clean(result.verdict, WHOLE))}")
    if num_runs:
        out.print(f"all {num_runs} runs: {folder / 'report.html'}")


def show_calibration(found: Sequence[ClientError], *, as_json: bool) -> None:
    """The client's own error by streams, on stdout."""
    if as_json:
        print(orjson.dumps([asdict(each) | {"tokens_per_s": each.tokens_per_s} for each in found]).decode())
        return
    table = Table(title=f"The client's own error, a token each {found[0].itl_ms:g} ms a stream; ms",
                  title_justify="left")
    for name in ("streams", "tokens/s", "arrival p50", "p99", "max", "gap p99", "CPU", "loop lag p99"):
        table.add_column(name, justify="right")
    for each in found:
        cpu, lag = each.cpu_share, each.lag_p99_ms
        table.add_row(str(each.streams), f"{each.tokens_per_s:,.0f}", f"{each.arrival_p50_ms:.2f}",
                      f"{each.arrival_p99_ms:.2f}", f"{each.arrival_max_ms:.2f}", f"{each.gap_p99_ms:.2f}",
                      UNKNOWN if cpu is None else f"{cpu:.0%}", UNKNOWN if lag is None else f"{lag:.2f}")
    Console(highlight=False).print(table)
