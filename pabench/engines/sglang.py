"""SGLang 0.5, its OpenAI routes: token ids in and out, exact lengths, metrics under `sglang:` (`--enable-metrics`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import (
    EXTENDED_CAPABILITIES,
    OpenAIDialect,
    extended_body,
    openai_path,
    owners,
    require_plain,
)
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.mapping import MetricTable, int_gauge, int_label, read_field, read_kv_sample
from pabench.telemetry.pages import ExtraPage, json_fields
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies, MetricSample

# Whatever `--enable-metrics` says: the state of now, and how the server was started.
_LOADS, _SERVER = "/v1/loads?format=prometheus", "/server_info"
# Use leaves the evictable cache out. `token_usage` is rounded to two decimals; the gauges move at each prefill and each
# 40th decode step, and at rest up to 30 s late; those of /v1/loads at once at rest, else as often as
# `--load-snapshot-publish-interval` says (15 decode steps). The token counters move when a request ends. Older versions
# count retractions in a gauge.
METRICS: MetricTable = {
    "kv_usage": ("sglang:full_token_usage", "sglang:token_usage", "sglang:kv_cache_usage_perc"),
    "running": (f"{_LOADS} num_running_reqs", "sglang:num_running_reqs", "sglang:num_requests_running"),
    "waiting": (f"{_LOADS} num_waiting_reqs", "sglang:num_queue_reqs", "sglang:num_requests_waiting"),
    "preemptions": ("sglang:num_retracted_requests_total", "sglang:total_retracted_reqs"),
    "prefix_queries": ("sglang:prompt_tokens_total",),
    "prefix_hits": ("sglang:cached_tokens_total",),
}
_NEWER = "sglang:full_token_usage"  # a page that holds it has the counters, once there is something to count
_COUNTED = ("preemptions", "prefix_queries", "prefix_hits")
_RANKS = ("pp_rank", "tp_rank", "moe_ep_rank")
_PAGE_SIZE, _NUM_PAGES = "sglang:page_size", "sglang:num_pages"
_EVICTABLE, _POOL = "sglang:kv_evictable_tokens", "sglang:max_total_num_tokens"
_USED, _SLOTS = (f"{_LOADS} {name}" for name in ("num_used_tokens", "max_total_num_tokens"))
_SERVER_FIELDS = ("page_size", "max_total_num_tokens", "disable_radix_cache")
_SERVER_PAGE, _SERVER_POOL, _UNCACHED = (f"{_SERVER} {field}" for field in _SERVER_FIELDS)


def _read_loads(body: bytes) -> MetricFamilies:
    """The metrics of /v1/loads under names of their own: they are the same as those of /metrics, and newer."""
    return {f"{_LOADS} {name.removeprefix('sglang:')}": samples for name, samples in parse_exposition(body).items()}


class SGLangDialect(OpenAIDialect):
    """`python -m sglang.launch_server`."""

    name = "sglang"
    disconnect_s = 2.0  # what watches a stream waits so long before it aborts
    capabilities: frozenset[str] = EXTENDED_CAPABILITIES
    metrics_path: str | None = "/metrics"
    cache_reset_path: str | None = "/flush_cache"
    cadence_s = 30.0  # without /v1/loads
    version_path = _SERVER
    health_path = "/ready"  # behind /health a token is generated, which counters show
    metric_names: frozenset[str] = frozenset({
        _PAGE_SIZE, _NUM_PAGES, _EVICTABLE, _POOL, _USED, _SLOTS, _SERVER_PAGE, _SERVER_POOL, _UNCACHED,
    }.union(*METRICS.values()))
    extra_pages: tuple[ExtraPage, ...] = (
        ExtraPage(_LOADS, "beside", _read_loads),
        ExtraPage(_SERVER, "once", json_fields(_SERVER, *_SERVER_FIELDS)),
    )

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for beams and for log-probabilities of the prompt.

        A server without `--enable-priority-scheduling` may take a priority and not heed it.
        """
        require_plain(request, self.name, but=("top_k", "cache_salt", "stop_token_ids", "priority"))
        body = extended_body(request, model)
        if request.chat and request.stream:
            del body["return_token_ids"]  # refused there
        if request.stop_token_ids:
            body.pop("ignore_eos", None)  # which has these ignored too
        if "request_id" in body:
            body["rid"] = body.pop("request_id")
        if "priority" in body:
            body["priority"] = -body["priority"]  # higher goes first
        return openai_path(request), body

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Geometry from gauges that are constant, else from the server's arguments; the pools of data parallel engines
        add up.
        """
        once = _totals(metrics)
        size, pages = int_gauge(once, _PAGE_SIZE), read_field(once, "num_blocks", (_NUM_PAGES,))
        if size is None:
            size, pool = int_gauge(metrics, _SERVER_PAGE) or None, int_gauge(metrics, _SERVER_POOL)
            pages = pool // size if pool is not None and size else None
        uncached = int_gauge(metrics, _UNCACHED)
        return KVFacts(
            block_size=size, num_blocks=None if pages is None else round(pages),
            prefix_caching=None if uncached is None else not uncached, kv_mode=None if size is None else "paged")

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary. Counters are not there before there is something to count."""
        once = _totals(metrics)
        sample = read_kv_sample(once, time_s, METRICS)
        used, slots = (read_field(metrics, "tokens", (name,)) for name in (_USED, _SLOTS))
        if used is not None and slots:
            sample = replace(sample, kv_usage=used / slots)
        evictable, pool = (read_field(once, "tokens", (name,)) for name in (_EVICTABLE, _POOL))
        if evictable is not None and pool:
            sample = replace(sample, kv_cached=evictable / pool)
        absent = [name for name in _COUNTED if getattr(sample, name) is None]
        return replace(sample, **dict.fromkeys(absent, 0.0)) if metrics.get(_NEWER) else sample

    def late_s(self, metrics: MetricFamilies) -> float:
        """/v1/loads moves at once."""
        return 0.0 if metrics.get(_USED) else self.cadence_s

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By the owner that it gives its models, or its metrics' prefix."""
        return "sglang" in owners(models) or any(name.startswith("sglang:") for name in metrics)


def _totals(metrics: MetricFamilies) -> MetricFamilies:
    """`metrics` with everything told once. A server with priorities tells requests by level, and all under an empty
    one. The ranks of a tensor or a pipeline parallel engine may each tell what is the engine's: the first counts, of
    each data parallel engine.
    """
    once = {name: _of_first_ranks(samples) for name, samples in metrics.items()}
    for name in (*METRICS["running"], *METRICS["waiting"]):
        total = [sample for sample in once.get(name, ()) if sample.labels.get("priority") == ""]
        if total:
            once[name] = total
    return once


def _of_first_ranks(samples: Sequence[MetricSample]) -> list[MetricSample]:
    first: dict[str, tuple[int, ...]] = {}  # data parallel engine -> its lowest rank
    for sample in samples:
        engine = sample.labels.get("dp_rank", "")
        first[engine] = min(first.get(engine, _rank(sample)), _rank(sample))
    return [sample for sample in samples if _rank(sample) == first[sample.labels.get("dp_rank", "")]]


def _rank(sample: MetricSample) -> tuple[int, ...]:
    return tuple(int_label(sample.labels, name) or 0 for name in _RANKS)
