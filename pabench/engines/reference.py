"""The reference engine: vLLM's request fields, and metrics that tell the exact split of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import EXTENDED_CAPABILITIES, OpenAIDialect, extended_body, openai_path
from pabench.telemetry.mapping import MetricTable, bool_label, info_labels, int_label, read_kv_sample
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

_PREFIX = "pabench_ref:"
_CACHE_CONFIG = _PREFIX + "cache_config_info"

METRICS: MetricTable = {
    "kv_usage": (_PREFIX + "kv_cache_usage",),
    "kv_cached": (_PREFIX + "kv_cache_idle",),
    "running": (_PREFIX + "num_requests_running",),
    "waiting": (_PREFIX + "num_requests_waiting",),
    "preemptions": (_PREFIX + "num_preemptions_total",),
    "prefix_queries": (_PREFIX + "prefix_cache_queries_total",),
    "prefix_hits": (_PREFIX + "prefix_cache_hits_total",),
    "drafted": (_PREFIX + "spec_decode_num_draft_tokens_total",),
    "accepted": (_PREFIX + "spec_decode_num_accepted_tokens_total",),
    "swapped": (_PREFIX + "swapped_blocks",),
    "token_states_tokens": (_PREFIX + "kv_token_state_slots",),
    "reserved_tokens": (_PREFIX + "kv_reserved_slots",),
    "internal_waste_tokens": (_PREFIX + "kv_internal_waste_slots",),
    "external_waste_tokens": (_PREFIX + "kv_external_waste_slots",),
}


class ReferenceDialect(OpenAIDialect):
    """`python -m reference_engine`."""

    name = "reference"
    capabilities: frozenset[str] = EXTENDED_CAPABILITIES | {"image_names"}
    metrics_path: str | None = "/metrics"
    cache_reset_path: str | None = "/reset_prefix_cache"
    metric_names: frozenset[str] = frozenset({_CACHE_CONFIG}.union(*METRICS.values()))

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`."""
        return openai_path(request), extended_body(request, model)

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Geometry from the labels of `pabench_ref:cache_config_info`."""
        labels = info_labels(metrics, _CACHE_CONFIG)
        return KVFacts(
            block_size=int_label(labels, "block_size"),
            num_blocks=int_label(labels, "num_blocks"),
            prefix_caching=bool_label(labels, "enable_prefix_caching"),
            kv_mode=labels.get("kv_mode"),
        )

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary, with the exact split of slots."""
        return read_kv_sample(metrics, time_s, METRICS)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By its metrics' prefix."""
        return any(name.startswith(_PREFIX) for name in metrics)
