"""TensorRT-LLM's `trtllm-serve`: unknown fields are refused, metrics under `/prometheus/metrics` where they are on.

Its `/metrics` is JSON, and reading it takes what was read away from others: it is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import OpenAIDialect, lengthened_body, openai_path, owners, require_plain, require_text
from pabench.telemetry.mapping import MetricTable, int_gauge, read_kv_sample
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

# Values are taken when a request ends; version 1.1 has none of the token counters. Paused requests are a gauge, and
# there are none under the default policy, which never lets in what may not fit.
METRICS: MetricTable = {
    "kv_usage": ("trtllm_kv_cache_utilization",),
    "running": ("trtllm_num_requests_running",),
    "waiting": ("trtllm_num_requests_waiting",),
    "prefix_queries": ("trtllm_prompt_tokens_total",),
    "prefix_hits": ("trtllm_prompt_cached_tokens_total",),
    "drafted": ("trtllm_spec_decode_num_draft_tokens_total",),
    "accepted": ("trtllm_spec_decode_num_accepted_tokens_total",),
}
_MAX_BLOCKS, _TOKENS_PER_BLOCK = "trtllm_kv_cache_max_blocks", "trtllm_kv_cache_tokens_per_block"


class TensorRTLLMDialect(OpenAIDialect):
    """`trtllm-serve`. It takes ids, but gives none back beside text: so words go both ways."""

    name = "tensorrt-llm"
    disconnect_s = 1.0  # polled
    partial_reuse_label: tuple[str, str] | None = ("trtllm_kv_cache_config_info", "enable_partial_reuse")
    capabilities: frozenset[str] = frozenset({"n", "sampling", "logprobs", "ignore_eos", "stream", "usage"})
    metrics_path: str | None = "/prometheus/metrics"
    not_applicable: frozenset[str] = frozenset({"preemptions"})  # under its default policy; the other is not told
    metric_names: frozenset[str] = frozenset({_MAX_BLOCKS, _TOKENS_PER_BLOCK}.union(*METRICS.values()))

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`: only fields that it knows."""
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k", "beam_width", "stop_token_ids"))
        body = lengthened_body(request, model)
        if request.beam_width:
            body |= {"use_beam_search": True, "n": request.beam_width}
        if request.stop_token_ids:
            body["stop_token_ids"] = list(request.stop_token_ids)
        return openai_path(request), body

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Geometry from gauges that are constant."""
        size, blocks = int_gauge(metrics, _TOKENS_PER_BLOCK), int_gauge(metrics, _MAX_BLOCKS)
        return KVFacts() if size is None else KVFacts(block_size=size, num_blocks=blocks, kv_mode="paged")

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary."""
        return read_kv_sample(metrics, time_s, METRICS)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By the owner that it gives its models, or its metrics' prefix."""
        return "tensorrt_llm" in owners(models) or any(name.startswith("trtllm_") for name in metrics)
