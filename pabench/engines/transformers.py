"""`transformers serve`: text prompts, one sample, unknown fields refused with 422, no metrics, no `[DONE]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pabench.engines.answers import parse_answer, parse_stream_answer
from pabench.engines.base import Completion, GenerationRequest, TextReader
from pabench.engines.openai import COMPLETIONS_PATH, require_text
from pabench.errors import UsageError
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

_NO_EOS = -1  # an id that no token has


class TransformersDialect:
    """The server of Hugging Face transformers 5.

    The length and the end of an answer go through `generation_config`, a JSON text, since `ignore_eos` is refused.
    Under continuous batching the first request's sampling settings hold for all, so "sampling" is no capability.
    """

    name = "transformers"
    capabilities: frozenset[str] = frozenset({"ignore_eos", "stream", "usage"})
    metrics_path: str | None = None
    metric_names: frozenset[str] = frozenset()

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for several samples and for logprobs."""
        require_text(request, self.name)
        if request.n != 1:
            raise UsageError(f"dialect {self.name!r} gives one sample a request, got n={request.n}: send n requests")
        if request.logprobs:
            raise UsageError(f"dialect {self.name!r} has no logprobs: ask without them")
        body: dict[str, Any] = {
            "model": model,
            "prompt": request.prompt,
            "stream": request.stream,
            "generation_config": orjson.dumps(_generation_config(request)).decode(),
        }
        if request.seed is not None:
            body["seed"] = request.seed
        return COMPLETIONS_PATH, body

    def parse(self, status: int, body: bytes, read_text: TextReader | None = None) -> Completion:
        """A whole answer."""
        return parse_answer(status, body, read_text)

    def parse_stream(
        self, status: int, chunks: Sequence[tuple[float, bytes]], read_text: TextReader | None = None
    ) -> Completion:
        """A streamed answer, from (arrival time in seconds, bytes) as read."""
        return parse_stream_answer(status, chunks, read_text)

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Nothing: the server has no metrics."""
        return KVFacts()

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """Nothing but the time: the server has no metrics."""
        return KVSample(time_s)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By uvicorn answering with a request id of its own, and no metrics: it has no mark that is its alone."""
        names = {name.lower(): value for name, value in headers.items()}
        return not metrics and "x-request-id" in names and names.get("server") == "uvicorn"


def _generation_config(request: GenerationRequest) -> dict[str, Any]:
    config: dict[str, Any] = {"max_new_tokens": request.max_tokens, "do_sample": request.temperature > 0}
    if request.ignore_eos:
        config["eos_token_id"] = _NO_EOS
    if request.temperature > 0:
        config |= {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
    return config
