"""Several runs side by side: a DataFrame for scripts, a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from pabench.analysis.summary import Quantiles, RunSummary
from pabench.engines.cleaning import clean
from pabench.telemetry.vocabulary import NOT_APPLICABLE, UNKNOWN

_GOODPUT = "goodput, requests/s (in time)"
_MISSED = "token deadlines missed"


def comparison_frame(summaries: Sequence[RunSummary]) -> pd.DataFrame:
    """One row a run: the figures that runs are compared by. What is not known is NaN."""
    return pd.DataFrame([
        {
            "label": one.label, "workload": one.workload, "load": one.load, "status": one.status,
            "requests": sum(one.outcomes.values()), "ok": one.outcomes.get("ok", 0),
            "sequences_fitted": one.peak_running,
            "throughput_tokens_per_s": one.throughput_tokens_per_s,
            "verified_tokens_per_s": one.verified_tokens_per_s,
            "ttft_p50_ms": _of(one.ttft_ms, "p50"), "ttft_p99_ms": _of(one.ttft_ms, "p99"),
            "tpot_p50_ms": _of(one.tpot_ms, "p50"), "tpot_p99_ms": _of(one.tpot_ms, "p99"),
            "kv_usage_mean": one.kv_usage_mean, "effective_utilisation": one.effective_utilisation,
            "preemptions": one.preemptions, "output_tokens": one.output_tokens,
            "verified_tokens": one.verified_tokens, "wrong_tokens": one.wrong_tokens,
            "valid": one.validity.valid,
        }
        for one in summaries
    ])


def comparison_table(summaries: Sequence[RunSummary], title: str | None = None) -> Table:
    """The same for people: one row a figure, one column a run.

    Engine-supplied text is shown as text, never as markup or control characters.
    """
    table = Table(title=title, title_justify="left")
    table.add_column()
    for one in summaries:
        table.add_column(Text(f"{clean(one.label)}\n{clean(one.load)}"), justify="right", overflow="fold")
    for name, show in _ROWS:
        if (name == _GOODPUT and all(one.slo is None for one in summaries)) or (
            name == _MISSED and all(one.deadline_miss_rate is None for one in summaries)):
            continue  # not asked, which is not the same as not told
        table.add_row(name, *(show(one) for one in summaries))
    return table


def throughput_table(engines: Sequence[Sequence[RunSummary]]) -> Table:
    """Tokens per second of several engines, one row each, at the same loads, one column each.

    Verified ones where answers were verified; all but the first engine also as a multiple of the first's, where both
    runs are VALID.
    """
    table = Table(title="output tokens/s (times the first engine's)", title_justify="left")
    table.add_column()
    found = [{run.load: run for run in runs} for runs in engines]
    loads = list(dict.fromkeys(load for at_loads in found for load in at_loads))
    for load in loads:
        table.add_column(Text(clean(load)), justify="right", overflow="fold")
    for at, (runs, at_loads) in enumerate(zip(engines, found, strict=True)):
        firsts = [found[0].get(load) if at else None for load in loads]
        cells = [_multiple(at_loads.get(load), first) for load, first in zip(loads, firsts, strict=True)]
        table.add_row(Text(clean(runs[0].label)), *cells)
    return table


def knee(summaries: Sequence[RunSummary]) -> RunSummary | None:
    """The run of the highest power, throughput / mean latency (Kleinrock 1979): beyond it more load buys more waiting
    than work. Tokens/s, verified ones where answers were verified, over E2E. None where it was not found: of the runs
    that are valid and have latencies there are no two, or the one of the highest load is the best of them.
    """
    known = _known(summaries)
    best = max(known, key=_power, default=None)
    return None if len(known) < 2 or best is max(known, key=_load) else best


def knee_text(summaries: Sequence[RunSummary]) -> str:
    """The knee in words, or why there is none. Texts may be hostile."""
    known, best = _known(summaries), knee(summaries)
    if best is not None:
        return f"knee (highest throughput / mean latency): {best.load}"
    if len(known) < 2:
        return f"no knee: {len(known)} of {len(summaries)} runs VALID and with latencies, at least 2 are needed"
    return f"no knee up to {max(known, key=_load).load}: the highest load has the highest throughput / mean latency"


def _known(summaries: Sequence[RunSummary]) -> list[RunSummary]:
    return [run for run in summaries if run.validity.valid and run.e2e_ms is not None and run.e2e_ms.mean > 0]


def _load(run: RunSummary) -> float:
    return run.users or run.rate_per_s or 0.0


def _power(run: RunSummary) -> float:
    assert run.e2e_ms is not None, "it is known"
    return _rate(run) / run.e2e_ms.mean


def _rate(run: RunSummary) -> float:
    return run.throughput_tokens_per_s if run.verified_tokens_per_s is None else run.verified_tokens_per_s


def _multiple(run: RunSummary | None, first: RunSummary | None) -> Text:
    if run is None:
        return _number(None, "")
    if not run.validity.valid:
        return Text(f"{_rate(run):,.0f} INVALID", "yellow")
    of_first = first is not None and first.validity.valid and _rate(first) > 0
    return Text(f"{_rate(run):,.0f}" + (f" (×{_rate(run) / _rate(first):.2f})" if of_first and first else ""))


def _of(found: Quantiles | None, name: str) -> float | None:
    return None if found is None else float(getattr(found, name))


def _number(value: float | None, form: str) -> Text:
    return Text(UNKNOWN if value is None else form.format(value))


def _pair(found: Quantiles | None) -> Text:
    return Text(UNKNOWN if found is None else f"{found.p50:,.1f} / {found.p99:,.1f}")


def _held(one: RunSummary) -> Text:
    if one.mean_running is None or one.peak_running is None:
        return Text(UNKNOWN)
    return Text(f"{one.mean_running:.1f} ({one.peak_running:.0f})")


def _goodput(one: RunSummary) -> Text:
    if one.goodput_per_s is None or one.in_time_share is None:
        return Text(UNKNOWN)
    return Text(f"{one.goodput_per_s:,.2f} ({one.in_time_share:.0%})")


def _utilisation(one: RunSummary) -> Text:
    if one.effective_utilisation is None:
        return Text(UNKNOWN)
    once = UNKNOWN if one.effective_utilisation_once is None else f"{one.effective_utilisation_once:.0%}"
    return Text(f"{one.effective_utilisation:.0%} ({once})")


def _verified(one: RunSummary) -> Text:
    if one.verified_tokens is None:
        return Text(UNKNOWN)
    share = f"{one.verified_tokens:,} of {one.verified_tokens + (one.wrong_tokens or 0):,}"
    if one.wrong_tokens:
        return Text(f"{share}, {one.wrong_tokens:,} WRONG", style="bold red")
    return Text(share, style="green")


def _verdict(one: RunSummary) -> Text:
    bad = [f"{count} {name}" for name, count in one.outcomes.items() if name != "ok" and count]
    words = ["VALID" if one.validity.valid else "INVALID", *bad]
    return Text(", ".join(words), style="green" if one.validity.valid and not bad else "yellow")


# Name of each row, and how to show it. Declared last: it names the functions above.
_ROWS: tuple[tuple[str, Callable[[RunSummary], Text]], ...] = (
    ("requests ok", lambda one: Text(f"{one.outcomes.get('ok', 0)} of {sum(one.outcomes.values())}")),
    ("sequences held, mean (peak)", _held),
    ("output tokens/s", lambda one: _number(one.throughput_tokens_per_s, "{:,.0f}")),
    ("verified tokens/s", lambda one: _number(one.verified_tokens_per_s, "{:,.0f}")),
    (_GOODPUT, _goodput),
    (_MISSED, lambda one: _number(one.deadline_miss_rate, "{:.2%}")),
    ("TTFT p50 / p99, ms", lambda one: _pair(one.ttft_ms)),
    ("TPOT p50 / p99, ms", lambda one: _pair(one.tpot_ms)),
    ("KV blocks in use, mean", lambda one: _number(one.kv_usage_mean, "{:.0%}")),
    ("effective utilisation (shared once)", _utilisation),
    ("prefix hit rate", lambda one: _number(one.prefix_hit_rate, "{:.0%}")),
    ("preemptions", lambda one: Text(NOT_APPLICABLE) if "preemptions" in one.not_applicable else
        _number(one.preemptions, "{:.0f}")),
    ("verified tokens", _verified),
    ("client's own error p99, ms", lambda one: Text("not calibrated") if one.client_error_ms is None else
        _number(one.client_error_ms, "{:.2f}")),
    ("verdict", _verdict),
)
