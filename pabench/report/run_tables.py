"""Tables of runs: the figures that people ask for first, all figures, and how each run was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pabench.analysis.summary import Quantiles, RunSummary
from pabench.load.records import OUTCOMES
from pabench.report.groups import Engine
from pabench.report.questions import AT_MOST
from pabench.report.tables import Cell, Column, Table, table, words
from pabench.report.text import count, number, percent, visible
from pabench.telemetry.vocabulary import NOT_APPLICABLE

Show = Callable[[float | None], str]


@dataclass(frozen=True, slots=True)
class _Figure:
    """One column of a table of runs."""

    column: Column
    get: Callable[[RunSummary], float | None]
    show: Show = number


_ENGINE = Column("engine", "Engine", numeric=False)
_WORKLOAD = Column("workload", "Workload", numeric=False)
_LOAD = Column("load", "Load", numeric=False)
_STATUS = Column("status", "Status", numeric=False)
_VALID = Column("valid", "Valid", numeric=False)
_LATENCIES = (
    ("ttft", "TTFT", "ttft_ms"), ("ttft_intended", "TTFT from intended start", "ttft_intended_ms"),
    ("tpot", "TPOT", "tpot_ms"), ("itl", "ITL", "itl_ms"), ("e2e", "End to end", "e2e_ms"),
    ("normalised_latency", "Normalised latency", "normalised_latency_ms"), ("lateness", "Send lateness", "lateness_ms"),
)
_QUANTILES = ("count", "mean", "p50", "p90", "p99", "max")


def key_table(engines: Sequence[Engine]) -> Table:
    """One row a run, the figures that people ask for first."""
    figures = [
        _plain("mean_running", "Sequences held, mean", ""),
        _plain("peak_running", "Sequences held, most", "", count),
        _plain("throughput_tokens_per_s", "Throughput", "tokens/s"),
        _plain("verified_tokens_per_s", "Verified", "tokens/s"),
        *([_plain("goodput_per_s", "Goodput", "requests/s")] if _has_slo(engines) else []),
        _of_quantiles("ttft_ms", "TTFT", "ttft", "p50"),
        _of_quantiles("ttft_ms", "TTFT", "ttft", "p99"),
        _of_quantiles("tpot_ms", "TPOT", "tpot", "p50"),
        _of_quantiles("tpot_ms", "TPOT", "tpot", "p99"),
        _plain("kv_usage_mean", "KV use", "%", percent),
        _plain("utilisation", "Effective utilisation", "%", percent),
        _plain("preemptions", "Preemptions", "", count),
        _plain("wrong_tokens", "Wrong tokens", "", count),
    ]
    return _runs_table("runs", "Runs at a glance", engines, figures)


def _has_slo(engines: Sequence[Engine]) -> bool:
    return any(run.summary.slo is not None for engine in engines for run in engine.runs)


def all_table(engines: Sequence[Engine]) -> Table:
    """Every figure of every run. Shown with runs as columns."""
    figures = [
        _plain("duration_s", "Duration", "s"),
        _Figure(Column("window_start_s", "Steady window from", "s"), lambda s: s.window_s[0]),
        _Figure(Column("window_end_s", "Steady window to", "s"), lambda s: s.window_s[1]),
        *(_outcome(name) for name in OUTCOMES),
        _plain("request_rate_per_s", "Requests completed", "1/s"),
        _plain("throughput_tokens_per_s", "Throughput", "tokens/s"),
        _plain("verified_tokens_per_s", "Verified throughput", "tokens/s"),
        _plain("goodput_per_s", "Goodput", "requests/s"),
        _plain("in_time_share", "Requests in time", "%", percent),
        _plain("deadline_miss_rate", "Token deadlines missed", "%", percent),
        _plain("output_tokens", "Output tokens", "", count),
        _plain("verified_tokens", "Verified tokens", "", count),
        _plain("wrong_tokens", "Wrong tokens", "", count),
        *(_of_quantiles(field, title, key, name) for key, title, field in _LATENCIES for name in _QUANTILES),
        *(_of_priority(priority, name) for priority in _priorities(engines) for name in ("count", "p50", "p99")),
        _plain("peak_running", "Sequences held at once, most", "", count),
        _plain("mean_running", "Sequences held at once, mean", "", count),
        _plain("kv_usage_mean", "KV use, mean", "%", percent),
        _plain("kv_usage_max", "KV use, most", "%", percent),
        _plain("live_tokens_mean", "Live tokens, mean", "tokens", count),
        _plain("live_tokens_once_mean", "Live tokens with shared prefixes once, mean", "tokens", count),
        _plain("utilisation", "Effective utilisation", "%", percent),
        _plain("effective_utilisation", "Effective utilisation, seen from outside", "%", percent),
        _plain("effective_utilisation_once", "The same with shared prefixes once", "%", percent),
        _plain("preemptions", "Preemptions", "", count),
        _plain("prefix_hit_rate", "Prefix hit rate", "%", percent),
        *(_waste(name) for name in ("token_states", "reserved", "internal", "external", "free")),
    ]
    return _runs_table("figures", "All figures of all runs", engines, figures, whole=True)


def failed_table(engines: Sequence[Engine]) -> Table | None:
    """Why requests failed, run by run; None where none did."""
    columns = [_ENGINE, _LOAD, Column("requests", "Requests"), Column("how", "How", numeric=False),
               Column("said", "What was said", numeric=False)]
    rows: list[list[Cell]] = []
    for engine in engines:
        for s in (run.summary for run in engine.runs):
            ways = [(way.count, way.way, way.said) for way in s.failures]
            ways += [(s.other_failures, "in other ways", "")] if s.other_failures else []
            rows += [[words(engine.name, engine=engine.index), words(s.load), Cell(count(number), number), words(way),
                      words(said)] for number, way, said in ways]
    return table("failed-requests", "Requests that failed", columns, rows) if rows else None


def _priorities(engines: Sequence[Engine]) -> list[str]:
    found = {priority for engine in engines for run in engine.runs for priority in run.summary.ttft_ms_by_priority}
    return sorted(found, key=int)


def _of_priority(priority: str, name: str) -> _Figure:
    def value(summary: RunSummary) -> float | None:
        found = summary.ttft_ms_by_priority.get(priority)
        return None if found is None else float(getattr(found, name))

    key, title = f"ttft_priority_{priority}", f"TTFT of priority {priority},"
    if name == "count":
        return _Figure(Column(f"{key}_samples", f"{title} samples"), value, count)
    return _Figure(Column(f"{key}_{name}_ms", f"{title} {name}", "ms"), value)


def _runs_table(
    id: str, caption: str, engines: Sequence[Engine], figures: Sequence[_Figure], *, whole: bool = False
) -> Table:
    """What may not be believed says so before its figures: a table may be wider than the page."""
    rows: list[list[Cell]] = []
    doubted: list[int] = []
    for engine in engines:
        for run in engine.runs:
            s = run.summary
            doubted += [] if run.believable else [len(rows)]
            cells = [words(engine.name, engine=engine.index), words(s.workload), words(s.load), _valid(s),
                     words(s.status, "" if s.status == "complete" else "bad")]
            rows.append(cells + [_measured(figure, s) for figure in figures])
    bounds = [None if run.summary.utilisation is None else run.summary.utilisation_is_bound
              for engine in engines for run in engine.runs]
    columns = [_ENGINE, _WORKLOAD, _LOAD, _VALID, _STATUS, *(figure.column for figure in figures)]
    left_out = set() if whole else _dull(columns, rows)
    kept = [index for index, column in enumerate(columns) if column not in left_out]
    return table(id, caption, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows], flip=whole,
                 doubted=doubted, unseen={"utilisation_is_bound": bounds})


def _dull(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> set[Column]:
    """Workload where it is one, and status where all are complete: the table of all figures has them."""
    told = {column: {row[index].text for row in rows} for index, column in enumerate(columns)}
    dull = {_WORKLOAD} if len(told[_WORKLOAD]) == 1 else set()
    return dull | {_STATUS} if told[_STATUS] == {"complete"} else dull


def _measured(figure: _Figure, summary: RunSummary) -> Cell:
    found = figure.get(summary)
    tone = "bad" if figure.column.key == "wrong_tokens" and found else ""
    shown = NOT_APPLICABLE if figure.column.key in summary.not_applicable else figure.show(found)
    if figure.column.unit == "%":
        shown = shown.removesuffix("%").rstrip()
    if figure.column.key == "utilisation_share" and found is not None and summary.utilisation_is_bound:
        return Cell(f"≤ {shown}", found, tone, AT_MOST)
    return Cell(shown, found, tone)


def _valid(summary: RunSummary) -> Cell:
    if summary.validity.valid:
        return Cell("valid", "valid", "good")
    return Cell("not valid", "not valid", "bad", visible("; ".join(summary.validity.reasons)))


def _plain(field: str, title: str, unit: str, show: Show = number) -> _Figure:
    """A field of the summary. Shares are 0..1 in the CSV, as their key says, and per cent on the page."""
    key = f"{field}_share" if unit == "%" and not field.endswith("_share") else field
    return _Figure(Column(key, title, unit), lambda s: _float(getattr(s, field)), show)


def _of_quantiles(field: str, title: str, key: str, name: str) -> _Figure:
    def get(summary: RunSummary) -> float | None:
        quantiles: Quantiles | None = getattr(summary, field)
        return None if quantiles is None else _float(getattr(quantiles, name))

    if name == "count":
        return _Figure(Column(f"{key}_samples", f"{title} samples"), get, count)
    return _Figure(Column(f"{key}_{name}_ms", f"{title} {name}", "ms"), get)


def _outcome(name: str) -> _Figure:
    return _Figure(Column(f"requests_{name}", f"Requests: {name}"), lambda s: s.outcomes.get(name, 0), count)


def _waste(name: str) -> _Figure:
    title = f"Slots: {name.replace('_', ' ')}"
    return _Figure(
        Column(f"slots_{name}_share", title, "%"),
        lambda s: None if s.waste is None else _float(getattr(s.waste, name)),
        percent,
    )


def _float(found: Any) -> float | None:
    return found if found is None or isinstance(found, int) else float(found)
