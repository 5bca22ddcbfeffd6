"""What people ask of engines side by side: each question is a figure of a run, and how to say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pabench.analysis.summary import RunSummary
from pabench.report.text import count, number, percent

AT_MOST = "at most: preempted requests count as live"  # of a utilisation that is seen from outside


@dataclass(frozen=True, slots=True)
class Question:
    """`claim` is a sentence over {best}, {factor} and {worst}; `noun` names the quantity."""

    title: str
    short: str                                   # what follows the factor, before the winner's name
    claim: str
    noun: str
    value: Callable[[RunSummary], float | None]
    show: Callable[[float], str]
    higher_is_better: bool = True
    peak: bool = False                           # best over the loads that were compared; else at the highest of them
    bound: Callable[[RunSummary], bool] = lambda _: False  # whether the value is the most that it can be


def useful_throughput(summary: RunSummary) -> float:
    """Verified tokens per second where the workload has an oracle, else output tokens per second."""
    verified = summary.verified_tokens_per_s
    return summary.throughput_tokens_per_s if verified is None else verified


def _quantile(field: str, name: str) -> Callable[[RunSummary], float | None]:
    def value(summary: RunSummary) -> float | None:
        quantiles = getattr(summary, field)
        return None if quantiles is None else float(getattr(quantiles, name))

    return value


def _ms(value: float) -> str:
    return f"{number(value)} ms"


QUESTIONS = (
    Question("Sequences held, mean", "as many with", "{best} holds {factor} the sequences of {worst} at once",
             "sequences held at once", lambda s: s.mean_running, count, peak=True),
    Question("Throughput", "as much with", "{best} reaches {factor} the throughput of {worst}",
             "throughput", useful_throughput, lambda v: f"{number(v)} tokens/s", peak=True),
    Question("Goodput", "as much with", "{best} has {factor} the goodput of {worst}",
             "goodput", lambda s: s.goodput_per_s, lambda v: f"{number(v)} requests/s", peak=True),
    Question("TTFT p99", "shorter with", "{best} has a {factor} shorter p99 time to first token than {worst}",
             "p99 time to first token", _quantile("ttft_ms", "p99"), _ms, False),
    Question("TPOT p50", "shorter with", "{best} has a {factor} shorter p50 time per output token than {worst}",
             "p50 time per output token", _quantile("tpot_ms", "p50"), _ms, False),
    Question("Effective utilisation", "as high with", "{best} has {factor} the effective utilisation of {worst}",
             "effective utilisation", lambda s: s.utilisation, percent, bound=lambda s: s.utilisation_is_bound),
)
