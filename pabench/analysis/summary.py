"""What one run comes to: the numbers that tables, gate and report show. Definitions: docs/measurement.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pabench.analysis.failures import FAILED, Failed


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of raw samples, never of summaries. Unit as the field that holds it says. `count` samples."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Validity:
    """Whether the client's own error leaves the numbers believable; `reasons` say why not."""

    valid: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WasteSplit:
    """Mean share of all KV slots while requests ran, each 0..1 (the vLLM paper's Fig. 2)."""

    token_states: float
    reserved: float
    internal: float
    external: float
    free: float

    @property
    def utilisation(self) -> float | None:
        """Of the slots that are taken, the share that holds a token's state; None where none is."""
        taken = self.token_states + self.reserved + self.internal + self.external
        return self.token_states / taken if taken > 0 else None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, summarised. None: not known for this engine or workload, which is not zero."""

    path: Path
    label: str                            # engine label, e.g. "reference paged"
    workload: str
    load: str                             # e.g. "8 users", "4 req/s Poisson"
    users: int | None
    rate_per_s: float | None
    status: str                           # complete | interrupted | failed
    outcomes: dict[str, int]              # every scheduled request in exactly one
    client_faults: int                    # errors among them that are the client's machine's: files, ports
    duration_s: float
    window_s: tuple[float, float]         # the steady window that throughput is taken from
    throughput_tokens_per_s: float        # output tokens inside the window
    verified_tokens_per_s: float | None   # those of them that the oracle confirms
    ramp_tokens_per_s: float | None       # output tokens before the window; None where there is no such time
    drain_tokens_per_s: float | None      # and after it
    request_rate_per_s: float
    ttft_ms: Quantiles | None
    ttft_intended_ms: Quantiles | None
    tpot_ms: Quantiles | None
    itl_ms: Quantiles | None
    itl_spread_share: float | None        # of its entries, those that are even parts of a chunk of several tokens
    e2e_ms: Quantiles | None
    lateness_ms: Quantiles | None         # asked - intended: what the client added
    normalised_latency_ms: Quantiles | None
    output_tokens: int
    verified_tokens: int | None
    wrong_tokens: int | None
    peak_running: float | None            # requests in the batch at once, as the engine's gauge says
    mean_running: float | None            # over the window
    kv_usage_mean: float | None           # 0..1, over the window
    kv_usage_max: float | None
    live_tokens_mean: float | None        # from the client's own record, over the window
    effective_utilisation: float | None   # live tokens / (kv_usage * capacity)
    live_tokens_once_mean: float | None         # the same two with blocks that prompts share counted once
    effective_utilisation_once: float | None
    preemptions: float | None             # during the run
    prefix_hit_rate: float | None
    waste: WasteSplit | None
    validity: Validity
    diagnoses: tuple[str, ...] = field(default=())  # first few texts of wrong answers: hostile, escape
    slo: str | None = None                # what in time means, in words
    in_time_share: float | None = None    # of the requests, 0..1
    goodput_per_s: float | None = None    # requests in time that ended inside the window
    deadline_miss_rate: float | None = None  # of the tokens' deadlines, 0..1; None where the SLO has none
    client_error_ms: float | None = None  # of a token's arrival, p99, against the stub; None: not calibrated
    not_applicable: tuple[str, ...] = ()  # figures that an engine of this kind cannot have
    ttft_ms_by_priority: dict[str, Quantiles] = field(default_factory=dict)  # lower first; empty: no priorities
    failures: tuple[Failed, ...] = ()     # the most frequent ways in which requests failed
    notes: tuple[str, ...] = ()           # of its manifest: what a reader must know

    @property
    def other_failures(self) -> int:
        """Requests that failed in ways that are not among `failures`."""
        return sum(self.outcomes.get(name, 0) for name in FAILED) - sum(way.count for way in self.failures)

    @property
    def utilisation(self) -> float | None:
        """Share of the taken slots that hold tokens: by the engine's own split where it is told, else from outside with
        shared prefixes once, as far as that is known.
        """
        exact = None if self.waste is None else self.waste.utilisation
        if exact is not None:
            return exact
        once = self.effective_utilisation_once
        return self.effective_utilisation if once is None else once

    @property
    def utilisation_is_bound(self) -> bool:
        """Whether `utilisation` is the most that it can be: the client counts a preempted request as live, though it
        holds no slot.
        """
        exact = None if self.waste is None else self.waste.utilisation
        return exact is None and bool(self.preemptions)
