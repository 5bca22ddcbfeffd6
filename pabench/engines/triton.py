"""Triton Inference Server with tensorrtllm_backend: its generate extension, text in and out, metrics on another port.

Its answers bear no usage, no finish reason and no `[DONE]`: the end of the stream is the end of the answer. That one
ended early is told by the number of its tokens alone, which is known of the KV probe's words and of no other model's.
All this is as tensorrtllm_backend's sources have it, and tested against a stand-in: no Triton server has run here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pabench.engines.answer_json import error_text, load_json
from pabench.engines.answers import parse_answer
from pabench.engines.base import Choice, Completion, GenerationRequest, TextReader
from pabench.engines.cleaning import clean
from pabench.engines.openai import OpenAIDialect, owners, require_plain, require_text
from pabench.engines.sse import Event, read_events
from pabench.engines.word_count import WordCount
from pabench.errors import EngineProtocol, UsageError
from pabench.telemetry.mapping import counts
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

if TYPE_CHECKING:
    from pabench.engines.client import EngineClient

# Gauges of one name each, their kind in a label.
_REQUESTS, _REQUEST_KIND = "nv_trt_llm_request_metrics", "request_type"
_BLOCKS, _BLOCK_KIND = "nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type"

_OWNER = "triton"
_TEXT_MODELS = ("ensemble", "tensorrt_llm_bls")  # of the backend's model repository, those that take text
_NO_END = -1  # an id that no token has


class TritonDialect(OpenAIDialect):
    """`POST /v2/models/{model}/generate` and `/generate_stream` of an ensemble or BLS model."""

    name = "triton"
    disconnect_s = 0.1  # polled
    capabilities: frozenset[str] = frozenset({"sampling", "ignore_eos", "stream"})
    metrics_path: str | None = ":8002/metrics"
    cadence_s = 0.1
    health_path = "/v2/health/ready"
    metric_names: frozenset[str] = frozenset({_REQUESTS, _BLOCKS})

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for several samples, beams, log-probabilities and chats.

        A greedy request is one of top_k 1: a temperature of 0 is nothing that every version takes.
        """
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k",))
        for field, default in (("n", 1), ("logprobs", False), ("chat", False)):
            if (value := getattr(request, field)) != default:
                raise UsageError(f"dialect {self.name!r} has no {field}, got {field}={value!r}: leave it out")
        body: dict[str, Any] = {
            "text_input": request.prompt, "max_tokens": request.max_tokens, "stream": request.stream,
            "exclude_input_in_output": True, "bad_words": "", "stop_words": "",
        }
        if request.temperature > 0:
            body |= {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
        else:
            body["top_k"] = 1
        if request.seed is not None:
            body["seed"] = request.seed
        if request.ignore_eos:
            body["end_id"] = _NO_END
        return f"/v2/models/{quote(model, safe='')}/generate{'_stream' if request.stream else ''}", body

    def parse(self, status: int, body: bytes, read_text: TextReader | None = None) -> Completion:
        """A whole answer."""
        if status != 200:
            return parse_answer(status, body)
        try:
            said = load_json(body)
        except ValueError:
            raise EngineProtocol(f"expected JSON as the answer, got {body[:80]!r}") from None
        error = error_text(said)
        if error is not None:
            return Completion(error=error)
        text = _text_of(said)
        return Completion([Choice(0, text, None if read_text is None else read_text(text))])

    def parse_stream(
        self, status: int, chunks: Sequence[tuple[float, bytes]], read_text: TextReader | None = None
    ) -> Completion:
        """A streamed answer, from (arrival time in seconds, bytes) as read."""
        if status != 200:
            return parse_answer(status, b"".join(piece for _, piece in chunks))
        told: list[tuple[float, str]] = []
        answer = Completion()
        for event in read_events(chunks):
            try:
                text = _event_text(event)
            except EngineProtocol as fault:
                answer.error = answer.error or str(fault)
                continue
            if text is None:
                answer.truncated = True
            else:
                told.append((event.time_s, text))
        if told:
            answer.choices = [_choice(told, read_text)]
        answer.truncated = answer.truncated or not told
        return answer

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Geometry from gauges that are constant, where all models that the server runs agree."""
        size, blocks = ({*_values(metrics, _BLOCKS, _BLOCK_KIND, kind)} for kind in ("tokens_per", "max"))
        if len(size) != 1 or len(blocks) != 1:
            return KVFacts()
        return KVFacts(block_size=int(size.pop()), num_blocks=int(blocks.pop()), kv_mode="paged")

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The KV vocabulary. Reuse is a gauge and in blocks, and so is no counter of prefix hits here."""
        usage = _values(metrics, _BLOCKS, _BLOCK_KIND, "fraction")
        running, waiting = (_values(metrics, _REQUESTS, _REQUEST_KIND, kind) for kind in ("active", "waiting"))
        return KVSample(time_s, kv_usage=math.fsum(usage) / len(usage) if usage else None,
                        running=math.fsum(running) if running else None,
                        waiting=math.fsum(waiting) if waiting else None)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By the owner that `triton_models` gives."""
        return _OWNER in owners(models)


async def triton_models(client: EngineClient, wanted: str | None) -> Mapping[str, Any] | None:
    """The models of a Triton server as `/v1/models` would list them; None where this is no Triton server.

    The one that takes text comes first. Raises UsageError where that is not known, or `wanted` is not ready.
    """
    if not await _is_triton(client):
        return None
    status, body = await client.post_raw("/v2/repository/index", {"ready": True})
    index = _json(body) if status == 200 else None
    if not isinstance(index, list):
        if wanted is not None:
            return _listing([wanted])
        raise UsageError(f"Triton at {client.url} does not list its models (POST /v2/repository/index answers with "
                         f"status {status}): name the one that takes text with --model")
    names = [str(entry["name"]) for entry in index if isinstance(entry, Mapping) and "name" in entry]
    shown = ", ".join(clean(name, 80) for name in names[:8]) or "none"
    if wanted is not None:
        if wanted not in names:
            raise UsageError(f"model {wanted!r} is not ready at {client.url}: expected one of those that are: {shown}")
        return _listing([wanted])
    first = [name for name in _TEXT_MODELS if name in names] or (names if len(names) == 1 else [])
    if not first:
        raise UsageError(f"Triton at {client.url} has {len(names)} models ready ({shown}), none of them called "
                         f"{' or '.join(_TEXT_MODELS)}: name the one that takes text with --model")
    return _listing([*first, *(name for name in names if name not in first)])


async def _is_triton(client: EngineClient) -> bool:
    status, _, body = await client.get("/v2")
    about = _json(body) if status == 200 else None
    return isinstance(about, Mapping) and about.get("name") == "triton"


def _listing(names: Sequence[str]) -> Mapping[str, Any]:
    return {"data": [{"id": name, "owned_by": _OWNER} for name in names]}


def _json(body: bytes) -> Any:
    try:
        return load_json(body)
    except ValueError:
        return None


def _event_text(event: Event) -> str | None:
    """What an event of a stream adds; None where the stream was cut inside it. Raises EngineProtocol."""
    try:
        said = load_json(event.data)
    except ValueError:
        if not event.complete:
            return None
        raise EngineProtocol(f"expected JSON in the stream, got {event.data[:80]!r}") from None
    error = error_text(said)
    if error is not None:
        raise EngineProtocol(error)
    return _text_of(said)


def _text_of(said: Any) -> str:
    text = said.get("text_output") if isinstance(said, Mapping) else None
    if not isinstance(text, str):
        raise EngineProtocol(f"expected an object with the text 'text_output', got {said!r:.80}")
    return text


def _choice(told: Sequence[tuple[float, str]], read_text: TextReader | None) -> Choice:
    """The one sample, of what was told and when. Each new word counts as a token, else each piece of text."""
    choice, words = Choice(0), None if read_text is None else WordCount(read_text)
    for time_s, text in _deltas(told):
        choice.text += text
        choice.token_times_s += [time_s] * (bool(text) if words is None else words.add(text))
    if read_text is not None:
        choice.token_ids = read_text(choice.text)
    return choice


def _deltas(told: Sequence[tuple[float, str]]) -> Iterator[tuple[float, str]]:
    """What is new in each. A BLS model with `accumulate_tokens` tells all so far, and nothing says that it does: each
    piece then begins with the whole of the one before, and the last has more words than the first.
    """
    texts = [text for _, text in told if text]
    grows = all(now.startswith(before) for before, now in pairwise(texts))
    cumulative = grows and len(texts) > 1 and len(texts[-1].split()) > len(texts[0].split())
    before = ""
    for time_s, text in told:
        yield time_s, text.removeprefix(before)
        before = (text or before) if cumulative else ""


def _values(metrics: MetricFamilies, name: str, label: str, kind: str) -> list[float]:
    """The gauge of one kind, of each model that the server runs."""
    return [sample.value for sample in metrics.get(name, ())
            if sample.labels.get(label) == kind and counts(sample.value)]
