"""vLLM 0.8 and later: token ids in and out, exact lengths, Prometheus metrics under `vllm:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import EXTENDED_CAPABILITIES, OpenAIDialect, extended_body, openai_path, owners
from pabench.telemetry.mapping import MetricTable, bool_label, info_labels, int_label, read_kv_sample, source_of
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

_CACHE_CONFIG = "vllm:cache_config_info"

# Newest name first; the gpu_… names went with 0.13. Under its old name vLLM 0.8 counts the prefix cache in blocks, 0.9
# in tokens, and says nowhere which: the share of hits holds either way.
METRICS: MetricTable = {
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "preemptions": ("vllm:num_preemptions_total",),
    "prefix_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "drafted": ("vllm:spec_decode_num_draft_tokens_total",),
    "accepted": ("vllm:spec_decode_num_accepted_tokens_total",),
}


class VLLMDialect(OpenAIDialect):
    """vLLM's OpenAI server."""

    name = "vllm"
    capabilities: frozenset[str] = EXTENDED_CAPABILITIES | {"image_names"}
    metrics_path: str | None = "/metrics"
    cache_reset_path: str | None = "/reset_prefix_cache"
    metric_names: frozenset[str] = frozenset({_CACHE_CONFIG}.union(*METRICS.values()))

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`."""
        return openai_path(request), extended_body(request, model)

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Geometry from the labels of `vllm:cache_config_info`.

        One block of each pool is the null block, which no request can have; with data parallelism the label is the
        sum over pools, and each pool has a usage gauge of its own.
        """
        labels = info_labels(metrics, _CACHE_CONFIG)
        if not labels:
            return KVFacts()
        usage = source_of(metrics, METRICS["kv_usage"])
        num_pools = len(metrics[usage]) if usage is not None else 1
        total = int_label(labels, "num_gpu_blocks")
        return KVFacts(
            block_size=int_label(labels, "block_size"),
            num_blocks=None if total is None else total - num_pools,
            prefix_caching=bool_label(labels, "enable_prefix_caching"),
            kv_mode="paged",
        )

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary. Freed blocks that still hold a cached prefix do not count as used."""
        return read_kv_sample(metrics, time_s, METRICS)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By its metrics' prefix, or by the owner that it gives its models."""
        return any(name.startswith("vllm:") for name in metrics) or "vllm" in owners(models)
