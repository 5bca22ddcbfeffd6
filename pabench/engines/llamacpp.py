"""llama.cpp's server: text prompts, exact lengths, slots instead of blocks, metrics under `llamacpp:`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import OpenAIDialect, openai_body, openai_path, owners, require_plain, require_text
from pabench.telemetry.mapping import MetricTable, int_gauge, read_field, read_kv_sample
from pabench.telemetry.pages import ExtraPage, json_fields, number
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies, MetricSample

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
# How full the slots are stands beside the metrics. All of them have the same length, unless they share one cache
# (`--kv-unified`, and what no `-np` means): then it is told as often as there are slots, and their use as too small a
# share of it. The tokens in use, the product of both, are right in either case.
_PROPS, _SLOTS = "/props", "/slots"
_SLOT_FIELDS = ("total_slots", "default_generation_settings.n_ctx")
_NUM_SLOTS, _SLOT_TOKENS = (f"{_PROPS} {field}" for field in _SLOT_FIELDS)
_USED, _TOTAL = f"{_SLOTS} tokens in use", f"{_SLOTS} n_ctx"


def _read_slots(body: bytes) -> MetricFamilies:
    """What all slots can hold, and what those at work do: their prompt and what they have generated."""
    slots = orjson.loads(body)
    if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
        raise ValueError("no list of slots")
    counts = [count for slot in slots if slot.get("is_processing") is True for count in _held(slot)]
    lengths = [number(slot.get("n_ctx")) for slot in slots]
    told = {_USED: counts, _TOTAL: lengths}
    return {name: [MetricSample(name, {}, math.fsum(value for value in values if value is not None))]
            for name, values in told.items() if None not in values}


def _held(slot: Mapping[str, Any]) -> Iterator[float | None]:
    """Tokens of a slot at work, by kind; None for what it does not tell."""
    yield number(slot.get("n_prompt_tokens"))
    samples = slot.get("next_token")
    for each in samples if isinstance(samples, list) else [samples]:
        yield number(each.get("n_decoded")) if isinstance(each, dict) else None


class LlamaCppDialect(OpenAIDialect):
    """`llama-server`. It takes prompts as ids, but tells no ids of what it generated: so words go both ways.

    A slot holds one sequence, and `n` is at most the number of slots; it is no block, and what it holds are tokens.
    """

    name = "llamacpp"
    capabilities: frozenset[str] = frozenset({"n", "sampling", "logprobs", "ignore_eos", "stream", "usage"})
    metrics_path: str | None = "/metrics"
    not_applicable: frozenset[str] = frozenset({"preemptions", "swapped"})  # it fails what finds no room
    metric_names: frozenset[str] = frozenset({_NUM_SLOTS, _SLOT_TOKENS, _USED, _TOTAL}.union(*METRICS.values()))
    extra_pages: tuple[ExtraPage, ...] = (
        ExtraPage(_SLOTS, "beside", _read_slots),
        ExtraPage(_PROPS, "once", json_fields(_PROPS, *_SLOT_FIELDS)),
    )

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`."""
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k",))
        body = openai_body(request, model)
        body["ignore_eos"] = request.ignore_eos
        if request.top_k or request.temperature > 0:
            body |= {"top_k": request.top_k, "min_p": 0.0}  # on by default here, and off in the protocol
        return openai_path(request), body

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Capacity from the number and the length of the slots, in cells of one token."""
        slots, length = int_gauge(metrics, _NUM_SLOTS), int_gauge(metrics, _SLOT_TOKENS)
        return KVFacts() if slots is None or length is None else KVFacts(
            block_size=1, num_blocks=slots * length, kv_mode="contiguous")

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary; use is that of slots at work, what idle ones still hold left out."""
        sample = read_kv_sample(metrics, time_s, METRICS)
        computed, hits = sample.prefix_queries, sample.prefix_hits
        used, total = (read_field(metrics, name, (name,)) for name in (_USED, _TOTAL))
        return replace(
            sample, prefix_queries=None if computed is None or hits is None else computed + hits,
            kv_usage=used / total if used is not None and total else None)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By the owner that it gives its models, or its metrics' prefix."""
        return "llamacpp" in owners(models) or any(name.startswith("llamacpp:") for name in metrics)
