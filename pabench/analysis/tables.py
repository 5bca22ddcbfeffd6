"""Several runs side by side: a DataFrame for scripts, a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from pabench.analysis.summary import Quantiles, RunSummary
from pabench.engines.cleaning import clean


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
    """The same for people. Engine-supplied text is shown as text, never as markup or control characters."""
    table = Table(title=title, title_justify="left", show_lines=False)
    table.add_column("engine")
    table.add_column("load")
    for name in ("requests ok", "sequences\nfitted", "tokens/s", "TTFT ms\np50 / p99", "TPOT ms\np50 / p99",
                 "KV used", "KV holding\ntokens", "verified\ntokens"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for one in summaries:
        table.add_row(
            Text(clean(one.label)), Text(clean(one.load)), f"{one.outcomes.get('ok', 0)}/{sum(one.outcomes.values())}",
            _number(one.peak_running, "{:.0f}"), _number(one.throughput_tokens_per_s, "{:.1f}"),
            _pair(one.ttft_ms), _pair(one.tpot_ms),
            _number(one.kv_usage_mean, "{:.0%}"), _number(one.effective_utilisation, "{:.0%}"),
            _verified(one), _verdict(one),
        )
    return table


def _of(found: Quantiles | None, name: str) -> float | None:
    return None if found is None else float(getattr(found, name))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _pair(found: Quantiles | None) -> str:
    return "-" if found is None else f"{found.p50:.1f} / {found.p99:.1f}"


def _verified(one: RunSummary) -> Text:
    if one.verified_tokens is None:
        return Text("-")
    if one.wrong_tokens:
        return Text(f"{one.verified_tokens}, {one.wrong_tokens} WRONG", style="bold red")
    return Text(str(one.verified_tokens))


def _verdict(one: RunSummary) -> Text:
    bad = [f"{count} {name}" for name, count in one.outcomes.items() if name != "ok" and count]
    words = ["VALID" if one.validity.valid else "INVALID", *bad]
    return Text(", ".join(words), style="green" if one.validity.valid and not bad else "yellow")
