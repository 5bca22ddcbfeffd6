"""What pabench asks of an engine, and the one protocol that every dialect fulfils.

A dialect knows how one engine spells requests, answers and metrics. It knows nothing about time, load or
correctness: it turns a `GenerationRequest` into a path and a body, and bytes back into a `Completion`.
All methods are pure, so that the load client can keep bytes while it measures and parse them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pabench.telemetry.pages import ExtraPage
from pabench.telemetry.vocabulary import KVFacts, KVSample, MetricFamilies

# What an engine can do, as found by `doctor`; requirements name these in `needs`.
CAPABILITIES = frozenset({
    "token_ids",        # prompts as token ids, and generated ids in the answer
    "n",                # several samples of one prompt
    "sampling",         # temperature, top_p and seed have an effect
    "logprobs",         # log-probability of each generated token, and of the runner-up
    "prompt_logprobs",  # log-probability of each token of the prompt
    "ignore_eos",       # a fixed output length can be asked for
    "stream",           # server-sent events
    "usage",            # token counts in the answer
    "cached_tokens",    # usage tells how many prompt tokens came from the prefix cache
    "kv_metrics",       # a gauge of KV cache use
    "running_metrics",  # gauges of running and waiting requests
    "prefix_cache",     # automatic prefix caching is on
    "cache_salt",       # a request can ask to be kept apart from what others have cached
    "capacity",         # number and size of blocks are told
    "context_length",   # the longest sequence (prompt + output) is told
    "chat",             # /v1/chat/completions, with the prompt's words as they are
    "beam",             # beam search
    "request_id",       # the client may name its request
    "stop_token_ids",   # an answer ends at a token of the client's choice
    "speculation",      # drafts are made and counted
    "priority",         # a request may say how urgent it is; whether that is heeded, a run of several shows
    "window",           # the KV probe that it serves is the one with a sliding window
    "mixed_windows",    # it is the one with windows in some layers
    "images",           # a chat may hold images; found on the KV probe that sees, alone
    "image_names",      # and the client may name them
})


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image in a chat, in place of the prompt's words (of its ids, one each) from `start` to `end`.

    `name` is what the client says it is known by (vLLM's `uuid`); None: nothing.
    """

    start: int
    end: int
    uri: str  # data:image/png;base64,…
    name: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request, in no engine's words.

    `prompt` is token ids where the engine takes them, else text. `max_tokens` is the exact output length when
    `ignore_eos` is set and the engine has that capability.
    """

    prompt: tuple[int, ...] | str
    max_tokens: int
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    seed: int | None = None
    stream: bool = True
    ignore_eos: bool = True
    logprobs: bool = False
    prompt_logprobs: bool = False
    cache_salt: str | None = None  # only requests with the same one share cached blocks
    request_id: str | None = None
    chat: bool = False  # as the one message of a chat; the prompt is sent as words
    beam_width: int = 0  # 0: no beam search; else the n best of so many beams, n == beam_width
    stop_token_ids: tuple[int, ...] = ()
    priority: int | None = None  # lower goes first, and 0 is what others have; None: not said
    images: tuple[ImagePart, ...] = ()  # of a chat, in their order


@dataclass(slots=True)
class Choice:
    """One sample of an answer. Lists by token are None where the engine does not give them.

    `runner_ups` is the log-probability of the best token that was not chosen, None where that is not told.
    `prompt_logprobs` has an entry a prompt token, None for the first.
    """

    index: int
    text: str = ""
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    runner_ups: list[float | None] | None = None
    prompt_logprobs: list[float | None] | None = None
    finish_reason: str | None = None
    token_times_s: list[float] = field(default_factory=list)  # arrival of each token; one chunk of k tokens: k entries


@dataclass(slots=True)
class Usage:
    """Token counts as the engine states them; None where it does not."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(slots=True)
class Completion:
    """An answer, parsed. `error` is set when the engine said so, in the status, the body or in mid-stream."""

    choices: list[Choice] = field(default_factory=list)
    usage: Usage | None = None
    status: int = 200
    error: str | None = None
    truncated: bool = False  # the stream ended without a finish reason for every choice
    finish_events: int = 0   # how many finish reasons the stream carried, over all choices
    id: str | None = None    # what the engine calls the answer


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine tells about itself. None: it does not say."""

    dialect: str
    model: str
    max_context_tokens: int | None
    model_root: str | None = None  # where it says it loaded the model from
    version: str | None = None
    kv: KVFacts | None = None
    capabilities: frozenset[str] = frozenset()


# Text of an answer -> token ids, for a model whose words are its tokens (the KV probe). Engines that answer in text
# alone can then still be verified, and a chunk of several tokens counted as several.
TextReader = Callable[[str], list[int]]


class Dialect(Protocol):
    """How one engine spells things. One small file each; those that extend OpenAI's protocol extend its dialect."""

    name: str
    disconnect_s: float           # it notices within so many seconds that a client has left; 0: at its next step
    partial_reuse_label: tuple[str, str] | None  # metric and label, "True" where part of a block may be a hit
    capabilities: frozenset[str]  # those the dialect always has; `doctor` finds the rest
    metrics_path: str | None      # ":8002/metrics": on another port; None: the engine has no metrics
    extra_pages: tuple[ExtraPage, ...]  # others that tell of the KV cache, where the engine has them
    cache_reset_path: str | None  # a POST there empties the prefix cache; None: there is no such route
    cadence_s: float              # how late the metrics of an engine at rest may be at most; 0: they move at once
    not_applicable: frozenset[str]  # fields of KVSample that this engine cannot have, which is not the same as untold
    health_path: str              # a GET there tells whether it serves, and generates nothing
    version_path: str             # a GET there tells `version`
    own_route: str | None         # one that no other engine has, for a dialect whose answers alone do not tell it
    metric_names: frozenset[str]  # every metric that kv_facts and kv_sample read, so that a scrape can skip the rest

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for what the dialect cannot say."""
        ...

    def parse(self, status: int, body: bytes, read_text: TextReader | None = None) -> Completion:
        """A whole (non-streamed) answer. `read_text` fills token ids where the engine gives text alone.

        Raises EngineProtocol when it is not what the dialect promises.
        """
        ...

    def parse_stream(
        self, status: int, chunks: Sequence[tuple[float, bytes]], read_text: TextReader | None = None
    ) -> Completion:
        """A streamed answer, from (arrival time in seconds, bytes) as read. Events may span or share chunks."""
        ...

    def kv_facts(self, metrics: MetricFamilies) -> KVFacts:
        """Block size and capacity from the metrics."""
        ...

    def kv_sample(self, metrics: MetricFamilies, time_s: float) -> KVSample:
        """The one KV vocabulary from the metrics at `time_s`."""
        ...

    def late_s(self, metrics: MetricFamilies) -> float:
        """How late they may be of an engine that has these, in seconds: at most `cadence_s`."""
        ...

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """Whether an engine that answers so speaks this dialect."""
        ...
