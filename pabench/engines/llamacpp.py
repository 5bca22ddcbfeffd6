"""llama.cpp's server: text prompts, exact lengths, slots instead of blocks, metrics under `llamacpp:`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import OpenAIDialect, openai_body, openai_path, owners, require_plain, require_text
from pabench.telemetry.mapping import MetricTable, read_kv_sample
from pabench.telemetry.vocabulary import KVSample, MetricFamilies

# Prompt tokens are counted when their slot is released, those from the cache apart from those that were computed.
_COMPUTED = "llamacpp:prompt_tokens_total"
METRICS: MetricTable = {
    "running": ("llamacpp:requests_processing",),
    "waiting": ("llamacpp:requests_deferred",),
    "prefix_queries": (_COMPUTED,),  # and the hits
    "prefix_hits": ("llamacpp:prompt_tokens_cached_total",),
    "drafted": ("llamacpp:spec_decode_num_draft_tokens_total",),
    "accepted": ("llamacpp:spec_decode_num_accepted_tokens_total",),
}


class LlamaCppDialect(OpenAIDialect):
    """`llama-server`. It takes prompts as ids, but tells no ids of what it generated: so words go both ways.

    A slot holds one sequence, and `n` is at most the number of slots; there are no blocks to tell of.
    """

    name = "llamacpp"
    capabilities: frozenset[str] = frozenset({"n", "sampling", "logprobs", "ignore_eos", "stream", "usage"})
    metrics_path: str | None = "/metrics"
    metric_names: frozenset[str] = frozenset().union(*METRICS.values())

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`."""
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k",))
        body = openai_body(request, model)
        body["ignore_eos"] = request.ignore_eos
        if request.top_k or request.temperature > 0:
            body |= {"top_k": request.top_k, "min_p": 0.0}  # on by default here, and off in the protocol
        return openai_path(request), body

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary: queue and cache hits; how full the slots are is on no metrics page."""
        sample = read_kv_sample(metrics, time_s, METRICS)
        computed, hits = sample.prefix_queries, sample.prefix_hits
        return replace(sample, prefix_queries=None if computed is None or hits is None else computed + hits)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By the owner that it gives its models, or its metrics' prefix."""
        return "llamacpp" in owners(models) or any(name.startswith("llamacpp:") for name in metrics)
