"""Runs in the shapes that other tools read: vLLM's bench result, CSV, Bencher's metric format, Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pabench.analysis import latency
from pabench.analysis.measures import MEASURES, measure
from pabench.analysis.runs import Run, load_run
from pabench.analysis.sides import Measured, read_all
from pabench.analysis.stats import quantiles
from pabench.engines.cleaning import WHOLE, clean, markdown, no_formula
from pabench.errors import UsageError
from pabench.load.arrivals import Arrivals, ClosedArrivals, GammaArrivals, PoissonArrivals

FORMATS = ("json", "vllm", "csv", "bencher", "markdown")
_SHOWN = ("throughput_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")


def exported(folders: Sequence[Path], form: str) -> str:
    """All runs below `folders` in one of FORMATS. Raises UsageError when one cannot be read."""
    runs, problems = read_all(folders)
    if problems:
        raise UsageError("; ".join(problems))
    if form == "csv":
        return as_csv(runs)
    if form == "bencher":
        return as_bencher(runs)
    if form == "markdown":
        return as_markdown(runs)
    if form == "vllm":
        told = [as_vllm(load_run(run.summary.path), run) for run in runs]
        return json.dumps(told[0] if len(told) == 1 else told) + "\n"
    return json.dumps([flat_row(run) for run in runs], indent=2) + "\n"


def flat_row(run: Measured) -> dict[str, Any]:
    """A run on one line: what it was, how it ended, every figure by name. None: not known."""
    manifest, summary = run.manifest, run.summary
    return {
        "path": str(summary.path), "started_at": manifest.started_at, "label": manifest.label,
        "engine": manifest.engine.dialect, "engine_version": manifest.engine.version,
        "git_commit": manifest.git_commit, "workload": summary.workload, "load": summary.load, "seed": manifest.seed,
        "status": summary.status, "valid": summary.validity.valid,
        **{outcome: summary.outcomes.get(outcome, 0) for outcome in ("ok", "wrong", "error", "timeout", "aborted",
                                                                     "unsent")},
        "output_tokens": summary.output_tokens, "wrong_tokens": summary.wrong_tokens,
        **{name: measure(summary, name) for name in MEASURES},
    }


def as_csv(runs: Sequence[Measured]) -> str:
    """One line a run. A text that a spreadsheet would take for a formula has an apostrophe before it."""
    rows = [{key: no_formula(clean(value, WHOLE)) if isinstance(value, str) else value
             for key, value in flat_row(run).items()} for run in runs]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_bencher(runs: Sequence[Measured]) -> str:
    """Bencher's metric format: benchmark -> measure -> value. VALID runs of one engine, model and load are one
    benchmark: their median, between the lowest and the highest. The format has no place for a doubt: it leaves out
    the others, and raises UsageError where none is left.
    """
    found: dict[str, dict[str, list[float]]] = {}
    valid = [run for run in runs if run.summary.validity.valid]
    if not valid:
        raise UsageError(f"none of {len(runs)} runs is VALID, and Bencher's format cannot say so of a figure: "
                         "`pabench results list` tells why")
    for run in valid:
        figures = found.setdefault(clean(f"{run.manifest.label}, {run.manifest.engine.model}, {run.load}", WHOLE), {})
        for name in MEASURES:
            if (value := measure(run.summary, name)) is not None:
                figures.setdefault(name, []).append(value)
    return json.dumps({
        name: {figure: {"value": float(np.median(values)), "lower_value": min(values), "upper_value": max(values)}
               for figure, values in figures.items()}
        for name, figures in found.items()
    }, indent=2) + "\n"


def as_markdown(runs: Sequence[Measured]) -> str:
    """A table for a pull request, one row a run."""
    lines = [f"| {' | '.join(('engine', 'load', 'valid', 'ok', *_SHOWN))} |", f"|{' --- |' * (4 + len(_SHOWN))}"]
    for run in runs:
        values = [measure(run.summary, name) for name in _SHOWN]
        cells = (run.manifest.label, run.load, "yes" if run.summary.validity.valid else "NO",
                 f"{run.summary.outcomes.get('ok', 0)} of {sum(run.summary.outcomes.values())}",
                 *("–" if value is None else f"{value:,.4g}" for value in values))
        lines.append(f"| {' | '.join(map(markdown, cells))} |")
    return "\n".join(lines) + "\n"


def as_vllm(run: Run, measured: Measured) -> dict[str, Any]:
    """The fields of `vllm bench serve --save-result --save-detailed` that we measure too; texts are not kept.

    Its latencies count from the sending and its throughput over the whole run, so that is what stands here, in place
    of our steady window. Its seconds are `duration`, `ttfts` and `itls`.
    """
    manifest, requests = run.manifest, run.requests
    ok, duration_s = latency.ok_requests(requests), manifest.duration_s or 0.0
    # As vLLM has it: what failed put out nothing, so that the lengths add up to the total.
    lens = np.where(requests["outcome"] == "ok", np.nan_to_num(latency.output_tokens(requests)), 0.0)
    tokens = float(lens.sum())
    arrivals = manifest.workload.arrivals
    return {
        "date": manifest.started_at, "backend": manifest.engine.dialect, "endpoint_type": manifest.engine.dialect,
        "label": manifest.label, "model_id": manifest.engine.model, "tokenizer_id": manifest.engine.model,
        "num_prompts": len(requests), "request_rate": _sent_rate(run, measured),
        "burstiness": _burstiness(arrivals), "max_concurrency": measured.summary.users,
        "duration": duration_s, "completed": len(ok), "failed": len(requests) - len(ok),
        "total_input_tokens": int(latency.prompt_tokens(ok).sum()), "total_output_tokens": int(tokens),
        "request_throughput": _rate(len(ok), duration_s),
        "output_throughput": _rate(tokens, duration_s),
        "total_token_throughput": _rate(tokens + float(latency.prompt_tokens(ok).sum()), duration_s),
        "input_lens": latency.prompt_tokens(requests).astype(int).tolist(), "output_lens": lens.astype(int).tolist(),
        "ttfts": _seconds(requests["first_s"] - requests["sent_s"]),
        "itls": gaps_s(requests),
        "start_times": _seconds(requests["sent_s"]),
        "errors": [clean(text) if isinstance(text, str) else "" for text in requests["error_text"]],
        **_vllm_latencies(ok),
        "pabench": {"valid": measured.summary.validity.valid, "wrong_tokens": measured.summary.wrong_tokens,
                    "steady_output_throughput": measured.summary.throughput_tokens_per_s},
    }


def _sent_rate(run: Run, measured: Measured) -> float | str:
    """Requests a second, as asked or, where that changes, on average; "inf" of a closed loop, as vLLM has it."""
    if run.manifest.workload.users is not None:
        return "inf"
    starts_s = run.requests["intended_s"].dropna()
    span_s = float(starts_s.max() - starts_s.min()) if len(starts_s) else 0.0
    return measured.summary.rate_per_s or (len(starts_s) / span_s if span_s > 0 else "inf")


def _burstiness(arrivals: Arrivals) -> float | None:
    """Shape of the gamma law of the gaps, 1 of Poisson's; None of other arrivals. vLLM has 1 for a closed loop."""
    if isinstance(arrivals, GammaArrivals):
        return arrivals.burstiness
    return 1.0 if isinstance(arrivals, PoissonArrivals | ClosedArrivals) else None


def gaps_s(requests: pd.DataFrame) -> list[list[float]]:
    """The gaps between the tokens of each request, as the summary takes them: a chunk's is spread over its tokens."""
    each = np.split(latency.itl_ms(requests) / 1e3, np.cumsum(latency.num_gaps(requests))[:-1])
    return [gaps.tolist() for gaps in each] if len(requests) else []


def _vllm_latencies(ok: pd.DataFrame) -> dict[str, float]:
    found = {"ttft": latency.ttft_ms(ok), "tpot": latency.tpot_ms(ok), "itl": latency.itl_ms(ok),
             "e2el": latency.e2e_ms(ok)}
    told: dict[str, float] = {}
    for name, samples in found.items():
        if (values := quantiles(samples)) is not None:
            told |= {f"mean_{name}_ms": values.mean, f"median_{name}_ms": values.p50,
                     f"std_{name}_ms": float(np.nanstd(samples)), f"p99_{name}_ms": values.p99}
    return told


def _seconds(column: pd.Series) -> list[float]:
    """0 where there is none, as vLLM has it for a request that failed."""
    return [float(value) for value in column.fillna(0.0)]


def _rate(count: float, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
