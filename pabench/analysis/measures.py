"""Figures of a run by name, as a policy, a history or an export asks for them: `ttft_p50_ms`, `request_rate_per_s`."""

from __future__ import annotations

from pabench.analysis.summary import RunSummary
from pabench.errors import UsageError

_LATENCIES = {
    "ttft": "ttft_ms", "ttft_intended": "ttft_intended_ms", "tpot": "tpot_ms", "itl": "itl_ms", "e2e": "e2e_ms",
    "normalised_latency": "normalised_latency_ms",
}
_STATISTICS = ("mean", "p50", "p90", "p99")
_QUANTILES = {f"{name}_{statistic}_ms": (field, statistic)
              for name, field in _LATENCIES.items() for statistic in _STATISTICS}
_RATES = ("throughput_tokens_per_s", "verified_tokens_per_s", "request_rate_per_s", "goodput_per_s",
          "effective_utilisation", "prefix_hit_rate")
MEASURES: tuple[str, ...] = (*_RATES, *_QUANTILES)


def measure(summary: RunSummary, name: str) -> float | None:
    """The figure `name`, one of MEASURES, in the unit that it ends in; None where the run has none."""
    check_measure(name)
    if name in _QUANTILES:
        field, statistic = _QUANTILES[name]
        found = getattr(summary, field)
        value = None if found is None else getattr(found, statistic)
    else:
        value = getattr(summary, name)
    return None if value is None else float(value)


def higher_is_better(name: str) -> bool:
    """Whether more of it is good: rates are, latencies are not."""
    return name in _RATES


def check_measure(name: str) -> None:
    """Raise UsageError unless `name` is one of MEASURES."""
    if name not in MEASURES:
        raise UsageError(f"unknown metric {name!r}: expected one of {', '.join(MEASURES)}")
