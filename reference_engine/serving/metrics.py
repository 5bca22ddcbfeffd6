"""Counters of the engine, and /metrics in Prometheus' text format.

The engine counts in plain integers; the exposition is rendered from a snapshot taken between two steps, so that all
its numbers belong to one moment.
"""

from __future__ import annotations

import bisect
import copy
import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, fields

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import KVSplit
from reference_engine.scheduling.scheduler import SchedulerStats
from reference_engine.scheduling.sequence import Request, Sequence, TokenOutput

PREFIX = "pabench_ref:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TTFT_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0,
)
_ITL_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)
_REQUEST_BOUNDS_S = (
    0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
)


@dataclass(slots=True)
class Histogram:
    """Observations by upper bound, in seconds; the last bucket has no bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """As Prometheus has it: cumulative."""
        labels = [*(str(bound) for bound in self.bounds), "+Inf"]
        sums = [sum(self.counts[: i + 1]) for i in range(len(self.counts))]
        return HistogramMetricFamily(name, text, buckets=list(zip(labels, sums, strict=True)), sum_value=self.total)


@dataclass(slots=True)
class EngineStats:
    """What the engine has done since it started. Tokens computed again after a preemption do not count again."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    draft_rounds: int = 0           # steps in which a sequence had draft tokens, each sequence counted
    draft_tokens: int = 0           # guessed by speculation, and verified
    accepted_draft_tokens: int = 0  # those of them that the model would have made too
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0})  # choices, by reason
    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(_TTFT_BOUNDS_S))
    inter_token_latency: Histogram = field(default_factory=lambda: Histogram(_ITL_BOUNDS_S))
    e2e_latency: Histogram = field(default_factory=lambda: Histogram(_REQUEST_BOUNDS_S))
    queue_time: Histogram = field(default_factory=lambda: Histogram(_TTFT_BOUNDS_S))

    def count_admissions(self, requests: Iterable[Request]) -> None:
        """Requests that a step has let in for the first time."""
        for request in requests:
            self.queue_time.observe(time.monotonic() - request.arrival_s)

    def count_finish(self, request: Request, reason: str, now_s: float) -> None:
        """A choice that has ended, and has left its request; the last one ends the request."""
        self.finished[reason] += 1
        if not request.sequences:
            self.e2e_latency.observe(now_s - request.arrival_s)

    def count_abort(self, request: Request) -> None:
        """Choices that are cut off, about to leave their request. A beam is none: n of them would have answered."""
        if request.params.beam_width and request.sequences:
            self.finished["abort"] += request.params.n
        else:
            self.finished["abort"] += sum(seq.width for seq in request.sequences)

    def count_token(self, seq: Sequence, now_s: float) -> None:
        """One generated token; a request's first one counts its prompt too."""
        self.generation_tokens += 1
        if seq.last_token_s:
            self.inter_token_latency.observe(now_s - seq.last_token_s)
        elif seq.index == 0:
            self.prompt_tokens += seq.num_prompt_tokens
            self.time_to_first_token.observe(now_s - seq.request.arrival_s)
        seq.last_token_s = now_s

    def count_answer(self, request: Request, outputs: SequenceOf[TokenOutput], now_s: float) -> None:
        """All tokens of all choices of a request that answers at once, at its end."""
        self.generation_tokens += len(outputs)
        for output in outputs:
            if output.finish_reason is not None:
                self.finished[output.finish_reason] += 1
        self.e2e_latency.observe(now_s - request.arrival_s)
        self.prompt_tokens += len(request.prompt)
        self.time_to_first_token.observe(now_s - request.arrival_s)

    def count_drafts(self, drafts: dict[int, list[int]]) -> None:
        """The draft tokens of a step, by sequence id."""
        self.draft_rounds += len(drafts)
        self.draft_tokens += sum(map(len, drafts.values()))

    @property
    def acceptance_length(self) -> float:
        """Tokens that a round with drafts gives on average, with the one that the model adds itself; 1.0 for none."""
        return 1 + self.accepted_draft_tokens / max(self.draft_rounds, 1)

    def copy(self) -> EngineStats:
        """An independent copy."""
        return copy.deepcopy(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine at one moment."""

    num_running: int
    num_waiting: int
    num_swapped: int      # of the waiting ones: their keys and values lie in host memory
    num_idle_blocks: int  # free ones that the prefix cache keeps
    num_host_blocks: int  # in use
    scheduler: SchedulerStats
    kv_usage: float
    split: KVSplit
    stats: EngineStats


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot, config: EngineConfig) -> None:
        self._snapshot, self._config = snapshot, config

    def collect(self) -> Iterator[Metric]:
        """All families, in the order they are shown."""
        s = self._snapshot
        for name, text, value in _gauges(s, self._config.num_blocks):
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        for name, text, value in _counters(s.scheduler, s.stats):
            yield CounterMetricFamily(PREFIX + name, text, value=value)
        finished = CounterMetricFamily(PREFIX + "request_success", "Choices ended", labels=["finished_reason"])
        for reason, count in s.stats.finished.items():
            finished.add_metric([reason], count)
        yield finished
        for name, text, histogram in _histograms(s.stats):
            yield histogram.family(PREFIX + name, text)
        yield InfoMetricFamily(PREFIX + "cache_config", "Every switch of the engine", value=_labels(self._config))


def _gauges(s: Snapshot, num_blocks: int) -> tuple[tuple[str, str, float], ...]:
    return (
        ("num_requests_running", "Sequences in the running batch", s.num_running),
        ("num_requests_waiting", "Sequences that wait for memory or a place", s.num_waiting),
        ("num_requests_swapped", "Waiting sequences whose keys and values lie in host memory", s.num_swapped),
        ("swapped_blocks", "Host blocks in use", s.num_host_blocks),
        ("kv_cache_usage", "Share of the blocks that are owned, 0 to 1", s.kv_usage),
        ("kv_cache_idle", "Share of the blocks that nobody owns and that hold a cached prefix, 0 to 1",
         s.num_idle_blocks / num_blocks),
        ("kv_free_slots", "Slots that nobody owns", s.split.free),
        ("kv_token_state_slots", "Slots that hold a token's key and value", s.split.token_states),
        ("kv_reserved_slots", "Owned slots that their request is yet to fill", s.split.reserved),
        ("kv_internal_waste_slots", "Owned slots that will never be used", s.split.internal_waste),
        ("kv_external_waste_slots", "Free slots that no reservation can use", s.split.external_waste),
    )


def _counters(scheduler: SchedulerStats, stats: EngineStats) -> tuple[tuple[str, str, int], ...]:
    return (
        ("num_preemptions", "Sequences that gave up their blocks", scheduler.preemptions),
        ("swapped_out_blocks", "Blocks copied to host memory", scheduler.swapped_out_blocks),
        ("swapped_in_blocks", "Blocks copied back from host memory", scheduler.swapped_in_blocks),
        ("recomputed_tokens", "Tokens computed again after a preemption", scheduler.recomputed_tokens),
        ("prompt_tokens", "Prompt tokens of requests that got their first token", stats.prompt_tokens),
        ("generation_tokens", "Tokens generated", stats.generation_tokens),
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", scheduler.prefix_queries),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache", scheduler.prefix_hits),
        ("spec_decode_num_drafts", "Rounds of draft tokens verified, each sequence counted", stats.draft_rounds),
        ("spec_decode_num_draft_tokens", "Draft tokens verified", stats.draft_tokens),
        ("spec_decode_num_accepted_tokens", "Draft tokens accepted", stats.accepted_draft_tokens),
    )


def _histograms(stats: EngineStats) -> tuple[tuple[str, str, Histogram], ...]:
    return (
        ("time_to_first_token_seconds", "Arrival to first token", stats.time_to_first_token),
        ("inter_token_latency_seconds", "Gap between two tokens", stats.inter_token_latency),
        ("e2e_request_latency_seconds", "Arrival to the last token of a request", stats.e2e_latency),
        ("request_queue_time_seconds", "Arrival to the first step with the request", stats.queue_time),
    )


def _labels(config: EngineConfig) -> dict[str, str]:
    labels = {f.name: str(getattr(config, f.name)) for f in fields(config)}
    return labels | {"kv_mode": config.kv, "enable_prefix_caching": str(config.caches_prefixes)}


def render(snapshot: Snapshot, config: EngineConfig) -> bytes:
    """The exposition, Prometheus text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot, config))
    return generate_latest(registry)
