"""mistral.rs: text prompts, exact lengths, no counts in a stream, metrics under `mistralrs_`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import OpenAIDialect, lengthened_body, openai_path, require_plain, require_text
from pabench.telemetry.mapping import MetricTable, read_field, read_kv_sample
from pabench.telemetry.vocabulary import KVSample, MetricFamilies

# Prefix hits are counted in sequences, not in tokens, and so are none here. How large a block is it does not tell.
METRICS: MetricTable = {
    "running": ("mistralrs_sequences_running",),
    "waiting": ("mistralrs_sequences_waiting",),
    "preemptions": ("mistralrs_paged_preemptions_total",),
    "drafted": ("mistralrs_speculative_draft_tokens_proposed_total",),
    "accepted": ("mistralrs_speculative_draft_tokens_accepted_total",),
}
_USED, _TOTAL = "mistralrs_kv_cache_blocks_used", "mistralrs_kv_cache_blocks_total"


class MistralRsDialect(OpenAIDialect):
    """`mistralrs serve`. A seed is not heeded, so that sampling is no capability."""

    name = "mistralrs"
    capabilities: frozenset[str] = frozenset({"n", "ignore_eos", "stream"})
    metrics_path: str | None = "/metrics"
    metric_names: frozenset[str] = frozenset({_USED, _TOTAL}.union(*METRICS.values()))

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`."""
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k",))
        body = lengthened_body(request, model)
        for unknown in ("seed", "stream_options"):
            body.pop(unknown, None)
        return openai_path(request), body

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary; use is that of blocks, cached ones left out. Preemptions are told from the first on."""
        used, total = (read_field(metrics, name, (name,)) for name in (_USED, _TOTAL))
        usage = used / total if used is not None and total else None
        sample = replace(read_kv_sample(metrics, time_s, METRICS), kv_usage=usage)
        return replace(sample, preemptions=0.0) if sample.preemptions is None and total is not None else sample

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By its metrics' prefix."""
        return any(name.startswith("mistralrs_") for name in metrics)
