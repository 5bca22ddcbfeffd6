"""Hugging Face TGI 3: text prompts, no exact lengths, blocks reserved when a request is let in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import OpenAIDialect, model_entries, openai_body, openai_path, require_plain, require_text
from pabench.errors import UsageError
from pabench.telemetry.mapping import MetricTable, read_kv_sample
from pabench.telemetry.vocabulary import KVSample, MetricFamilies

# `tgi_batch_current_max_tokens` is what requests may need in the end, not what they use: no KV use is told. Nothing is
# ever preempted.
METRICS: MetricTable = {"running": ("tgi_batch_current_size",), "waiting": ("tgi_queue_size",)}


class TGIDialect(OpenAIDialect):
    """text-generation-inference's OpenAI routes."""

    name = "tgi"
    capabilities: frozenset[str] = frozenset({"sampling", "stream", "usage"})
    metrics_path: str | None = "/metrics"
    not_applicable: frozenset[str] = frozenset({"preemptions", "swapped"})
    metric_names: frozenset[str] = frozenset().union(*METRICS.values())

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for several samples."""
        require_text(request, self.name)
        require_plain(request, self.name)
        if request.n != 1:
            raise UsageError(f"dialect {self.name!r} gives one sample a request, got n={request.n}: send n requests")
        return openai_path(request), openai_body(request, model)

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary: the queue."""
        return read_kv_sample(metrics, time_s, METRICS)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By its metrics' prefix. Before its first request it shows none, but its model owns itself and has no date."""
        return any(name.startswith("tgi_") for name in metrics) or any(
            entry.get("created") == 0 and "id" in entry and entry.get("owned_by") == entry["id"]
            for entry in model_entries(models))
