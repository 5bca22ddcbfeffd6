"""LMDeploy's `api_server`: text prompts, one sample a completion, metrics under `lmdeploy:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import OpenAIDialect, lengthened_body, openai_path, owners, require_plain, require_text
from pabench.errors import UsageError
from pabench.telemetry.mapping import MetricTable, int_gauge, read_kv_sample
from pabench.telemetry.pages import ExtraPage, json_fields
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

# The gauges move every 10 s. KV use is left out: one of its two engines counts what is only cached as used, the other
# does not, and which one it is it does not tell. The share of prefix hits is a ratio, without the counts.
METRICS: MetricTable = {
    "running": ("lmdeploy:num_requests_running",),
    "waiting": ("lmdeploy:num_requests_waiting",),
    "prefix_queries": ("lmdeploy:prompt_tokens_total",),
    "prefix_hits": ("lmdeploy:cached_tokens_total",),
    "drafted": ("lmdeploy:spec_decode_num_draft_tokens_total",),
    "accepted": ("lmdeploy:spec_decode_num_accepted_tokens_total",),
}
_ENGINE = "/distserve/engine_info"  # of its PyTorch engine alone
_ENGINE_FIELDS = ("block_size", "num_gpu_blocks")
_BLOCK_SIZE, _NUM_BLOCKS = (f"{_ENGINE} {field}" for field in _ENGINE_FIELDS)


class LMDeployDialect(OpenAIDialect):
    """`lmdeploy serve api_server`. Completions ignore `n`, and take no token ids."""

    name = "lmdeploy"
    capabilities: frozenset[str] = frozenset({"sampling", "ignore_eos", "stream", "usage"})
    metrics_path: str | None = "/metrics"
    cadence_s = 10.0
    metric_names: frozenset[str] = frozenset({_BLOCK_SIZE, _NUM_BLOCKS}.union(*METRICS.values()))
    extra_pages: tuple[ExtraPage, ...] = (ExtraPage(_ENGINE, "once", json_fields(_ENGINE, *_ENGINE_FIELDS)),)

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for several samples."""
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k",))
        if request.n != 1:
            raise UsageError(f"dialect {self.name!r} gives one sample a request, got n={request.n}: send n requests")
        return openai_path(request), lengthened_body(request, model)

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Geometry where the engine is the one that tells it."""
        size, blocks = int_gauge(metrics, _BLOCK_SIZE) or None, int_gauge(metrics, _NUM_BLOCKS)
        return KVFacts() if size is None else KVFacts(block_size=size, num_blocks=blocks, kv_mode="paged")

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary: queue and cache hits."""
        return read_kv_sample(metrics, time_s, METRICS)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By its metrics' prefix, or by the owner that it gives its models."""
        return any(name.startswith("lmdeploy:") for name in metrics) or "lmdeploy" in owners(models)
