"""Plain OpenAI completions: any server that speaks the protocol and nothing more. Text prompts, no metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pabench.engines.answers import parse_answer, parse_stream_answer
from pabench.engines.base import Completion, GenerationRequest, TextReader
from pabench.errors import UsageError
from pabench.telemetry.pages import ExtraPage
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

COMPLETIONS_PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"

# What vLLM added to the protocol, and others took over.
EXTENDED_CAPABILITIES = frozenset({"token_ids", "n", "sampling", "logprobs", "ignore_eos", "stream", "usage"})
_TOLD_LOGPROBS = 2  # a token: the best two, so that the runner-up is among them
_BEYOND_OPENAI = ("top_k", "beam_width", "cache_salt", "prompt_logprobs", "stop_token_ids", "priority")
_UNSAID = {field.name: field.default for field in fields(GenerationRequest)}


def openai_path(request: GenerationRequest) -> str:
    """Where `request` goes."""
    return CHAT_PATH if request.chat else COMPLETIONS_PATH


def openai_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """The fields that every OpenAI server knows. Defaults stay out, so that strict servers have less to refuse."""
    body: dict[str, Any] = {
        "model": model,
        **_prompt(request),
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "stream": request.stream,
    }
    if request.n != 1:
        body["n"] = request.n
    if request.top_p != 1.0:
        body["top_p"] = request.top_p
    if request.seed is not None:
        body["seed"] = request.seed
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": _TOLD_LOGPROBS} if request.chat else {"logprobs": _TOLD_LOGPROBS}
    if request.stream:
        body["stream_options"] = {"include_usage": True}
    return body


def lengthened_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """`openai_body` with the two fields that most engines have added: `ignore_eos` and `top_k`."""
    body = openai_body(request, model)
    if request.ignore_eos:
        body["ignore_eos"] = True
    if request.top_k:
        body["top_k"] = request.top_k
    return body


def _prompt(request: GenerationRequest) -> dict[str, Any]:
    if request.chat:
        content = _parts(request) if request.images else request.prompt
        return {"messages": [{"role": "user", "content": content}]}
    _require_chat_of_images(request)
    return {"prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt)}


def _parts(request: GenerationRequest) -> list[dict[str, Any]]:
    """What stands between the images, and the images, each as a part of the message."""
    assert isinstance(request.prompt, str), "chats are worded"
    words, at = request.prompt.split(" "), 0
    parts: list[dict[str, Any]] = []
    for image in request.images:
        if image.start > at:
            parts.append({"type": "text", "text": " ".join(words[at : image.start])})
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": image.uri}}
        parts.append(part if image.name is None else part | {"uuid": image.name})
        at = image.end
    return [*parts, {"type": "text", "text": " ".join(words[at:])}] if at < len(words) else parts


def extended_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """`openai_body` with vLLM's fields: those behind `EXTENDED_CAPABILITIES`, and others that are asked for."""
    body = lengthened_body(request, model)
    body["return_token_ids"] = True
    if request.prompt_logprobs:
        body["prompt_logprobs"] = 0  # the prompt's own tokens, no others beside them
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    if request.request_id is not None:
        body["request_id"] = request.request_id
    if request.beam_width:
        body |= {"use_beam_search": True, "n": request.beam_width}
    if request.stop_token_ids:
        body["stop_token_ids"] = list(request.stop_token_ids)
    if request.priority is not None:
        body["priority"] = request.priority
    return body


def require_text(request: GenerationRequest, dialect: str) -> None:
    """Raise UsageError when `request` has a prompt of token ids, for dialects that take only text."""
    if not isinstance(request.prompt, str):
        raise UsageError(
            f"dialect {dialect!r} takes text prompts only, got {len(request.prompt)} token ids: "
            "turn them into words first (pabench.engines.wording.worded)"
        )


def require_plain(request: GenerationRequest, dialect: str, *, but: Sequence[str] = ()) -> None:
    """Raise UsageError when `request` asks for what the protocol as published has no field for, `but` left out."""
    for name in _BEYOND_OPENAI:
        if name not in but and (value := getattr(request, name)) != _UNSAID[name]:
            raise UsageError(f"dialect {dialect!r} has no {name}, got {name}={value!r}: leave it out")
    _require_chat_of_images(request)
    if named := [image.name for image in request.images if image.name is not None]:
        raise UsageError(f"dialect {dialect!r} has no names of images, got {named[0]!r}: leave it out")


def _require_chat_of_images(request: GenerationRequest) -> None:
    if request.images and not request.chat:
        raise UsageError(f"a completion has no images, got {len(request.images)}: ask with chat=True")


class OpenAIDialect:
    """The protocol as published. A fixed output length cannot be asked for, so `ignore_eos` has no effect."""

    name = "openai"
    disconnect_s = 0.0
    partial_reuse_label: tuple[str, str] | None = None
    capabilities: frozenset[str] = frozenset({"sampling", "stream"})
    metrics_path: str | None = None
    extra_pages: tuple[ExtraPage, ...] = ()
    cadence_s = 0.0
    not_applicable: frozenset[str] = frozenset()
    health_path = "/health"
    version_path = "/version"
    own_route: str | None = None
    cache_reset_path: str | None = None
    metric_names: frozenset[str] = frozenset()

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`."""
        require_text(request, self.name)
        require_plain(request, self.name)
        return openai_path(request), openai_body(request, model)

    def parse(self, status: int, body: bytes, read_text: TextReader | None = None) -> Completion:
        """A whole answer."""
        return parse_answer(status, body, read_text)

    def parse_stream(
        self, status: int, chunks: Sequence[tuple[float, bytes]], read_text: TextReader | None = None
    ) -> Completion:
        """A streamed answer, from (arrival time in seconds, bytes) as read."""
        return parse_stream_answer(status, chunks, read_text)

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Nothing: the protocol has no metrics."""
        return KVFacts()

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """Nothing but the time: the protocol has no metrics."""
        return KVSample(time_s)

    def late_s(self, metrics: MetricFamilies) -> float:
        """What is known of all engines of the dialect."""
        return self.cadence_s

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """Whether this is a list of models at all: the dialect that remains when no other fits."""
        return isinstance(models.get("data"), list)


def model_entries(models: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models of a `/v1/models` answer; what is no JSON object there is left out."""
    data = models.get("data")
    return [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []


def owners(models: Mapping[str, Any]) -> set[str]:
    """`owned_by` of each model in a `/v1/models` answer."""
    return {str(entry.get("owned_by")) for entry in model_entries(models)}
