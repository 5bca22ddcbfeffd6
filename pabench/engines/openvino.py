"""OpenVINO Model Server: text prompts, exact lengths, no metrics of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import OpenAIDialect, lengthened_body, openai_path, owners, require_plain, require_text
from pabench.errors import UsageError
from pabench.telemetry.mapping import MetricTable, read_kv_sample
from pabench.telemetry.vocabulary import KVSample, MetricFamilies

METRICS: MetricTable = {"running": ("ovms_current_graphs",)}  # requests in a graph, those that wait in it included


class OpenVINODialect(OpenAIDialect):
    """OVMS with a text generation servable (`--metrics_enable`)."""

    name = "openvino"
    capabilities: frozenset[str] = frozenset({"n", "sampling", "ignore_eos", "stream", "usage"})
    metrics_path: str | None = "/metrics"
    health_path = "/v2/health/ready"
    metric_names: frozenset[str] = frozenset().union(*METRICS.values())

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for several samples in a stream, and logprobs in one."""
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k",))
        if request.stream and (request.n != 1 or request.logprobs):
            raise UsageError(f"dialect {self.name!r} streams one sample without logprobs, got n={request.n}, "
                             f"logprobs={request.logprobs}: ask with stream=False")
        body = lengthened_body(request, model)
        if request.logprobs:
            body["logprobs"] = True if request.chat else 1
        return openai_path(request), body

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary: requests."""
        return read_kv_sample(metrics, time_s, METRICS)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By the owner that it gives its models, or its metrics' prefix: it shows none unless told to."""
        return "OVMS" in owners(models) or any(name.startswith("ovms_") for name in metrics)
