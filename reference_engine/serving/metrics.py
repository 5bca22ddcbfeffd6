"""Counters of the engine, and /metrics in Prometheus' text format.

The engine counts in plain integers; the exposition is rendered from a snapshot taken between two steps, so that all
its numbers belong to one moment.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

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
from reference_engine.scheduling.sequence import Request, Sequence

PREFIX = "pabench_ref:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TTFT_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0,
)
_ITL_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
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
    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(_TTFT_BOUNDS_S))
    inter_token_latency: Histogram = field(default_factory=lambda: Histogram(_ITL_BOUNDS_S))

    def count_token(self, seq: Sequence, now_s: float) -> None:
        """One generated token; a request's first one counts its prompt too."""
        self.generation_tokens += 1
        if seq.last_token_s:
            self.inter_token_latency.observe(now_s - seq.last_token_s)
        elif seq.index == 0:
            self.prompt_tokens += seq.num_prompt_tokens
            self.time_to_first_token.observe(now_s - seq.request.arrival_s)
        seq.last_token_s = now_s

    def count_answer(self, request: Request, num_tokens: int, now_s: float) -> None:
        """All tokens of a request that answers at once, at its end."""
        self.generation_tokens += num_tokens
        self.prompt_tokens += len(request.prompt)
        self.time_to_first_token.observe(now_s - request.arrival_s)

    def copy(self) -> EngineStats:
        """An independent copy."""
        return copy.deepcopy(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine at one moment."""

    num_running: int
    num_waiting: int
    scheduler: SchedulerStats
    kv_usage: float
    split: KVSplit
    stats: EngineStats


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot, config: EngineConfig) -> None:
        self._snapshot, self._config = snapshot, config

    def collect(self) -> Iterator[Metric]:
        """All families, in the order they are shown."""
        s, stats = self._snapshot, self._snapshot.stats
        gauges = (
            ("num_requests_running", "Sequences in the running batch", s.num_running),
            ("num_requests_waiting", "Sequences that wait for memory or a place", s.num_waiting),
            ("kv_cache_usage", "Share of the blocks that are owned, 0 to 1", s.kv_usage),
            ("kv_token_state_slots", "Slots that hold a token's key and value", s.split.token_states),
            ("kv_reserved_slots", "Owned slots that their request is yet to fill", s.split.reserved),
            ("kv_internal_waste_slots", "Owned slots that will never be used", s.split.internal_waste),
            ("kv_external_waste_slots", "Free slots that no reservation can use", s.split.external_waste),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        counters = (
            ("num_preemptions", "Sequences that gave up their blocks", s.scheduler.preemptions),
            ("prompt_tokens", "Prompt tokens of requests that got their first token", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated", stats.generation_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", s.scheduler.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", s.scheduler.prefix_hits),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(PREFIX + name, text, value=value)
        yield stats.time_to_first_token.family(PREFIX + "time_to_first_token_seconds", "Arrival to first token")
        yield stats.inter_token_latency.family(PREFIX + "inter_token_latency_seconds", "Gap between two tokens")
        c = self._config
        yield InfoMetricFamily(PREFIX + "cache_config", "Geometry of the KV cache", value={
            "block_size": str(c.block_size), "num_blocks": str(c.num_blocks), "kv_mode": c.kv,
            "max_model_len": str(c.max_model_len), "enable_prefix_caching": str(c.caches_prefixes),
        })


def render(snapshot: Snapshot, config: EngineConfig) -> bytes:
    """The exposition, Prometheus text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot, config))
    return generate_latest(registry)
