"""SGLang's own route, `/generate`: its events hold all that was said so far. Asked for by name only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pabench.engines.answer_fields import MAX_INT, MAX_REASON_CHARS, count, fault_text, ids_of
from pabench.engines.answer_json import MAX_ERROR_CHARS, error_text, load_json
from pabench.engines.answers import parse_answer
from pabench.engines.base import Choice, Completion, GenerationRequest, TextReader, Usage
from pabench.engines.openai import require_plain
from pabench.engines.sglang import SGLangDialect
from pabench.engines.sse import read_events
from pabench.errors import EngineProtocol, UsageError
from pabench.telemetry.vocabulary import MetricFamilies

GENERATE_PATH = "/generate"
_TOLD_LOGPROBS = 2  # a token: the best two, so that the runner-up is among them


class SGLangGenerateDialect(SGLangDialect):
    """`python -m sglang.launch_server`, by `POST /generate`."""

    name = "sglang-generate"

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for chats, beams and cache salts."""
        require_plain(request, self.name, but=("top_k", "stop_token_ids", "prompt_logprobs"))
        if request.chat:
            raise UsageError(f"dialect {self.name!r} has no chat: take dialect 'sglang'")
        wanted = {
            "max_new_tokens": request.max_tokens, "temperature": request.temperature,
            "ignore_eos": request.ignore_eos and not request.stop_token_ids,  # which it would have ignored too
            "n": request.n, "top_p": request.top_p, "top_k": request.top_k or -1, "sampling_seed": request.seed,
            "stop_token_ids": list(request.stop_token_ids) or None,
        }
        text = isinstance(request.prompt, str)
        body: dict[str, Any] = {
            "text" if text else "input_ids": request.prompt if text else list(request.prompt),
            "sampling_params": {name: value for name, value in wanted.items() if value is not None},
            "stream": request.stream,
        }
        if request.logprobs or request.prompt_logprobs:
            body |= {"return_logprob": True, "top_logprobs_num": _TOLD_LOGPROBS if request.logprobs else 0}
        if request.prompt_logprobs:
            body["logprob_start_len"] = 0
        if request.request_id is not None:
            body["rid"] = request.request_id
        return GENERATE_PATH, body

    def parse(self, status: int, body: bytes, read_text: TextReader | None = None) -> Completion:
        """A whole answer: an object, or a list of them where several samples were asked for."""
        if status != 200:
            return parse_answer(status, body)
        try:
            answer = load_json(body)
        except ValueError:
            raise EngineProtocol(f"expected JSON as the answer, got {body[:80]!r}") from None
        reading = _Reading()
        for index, said in enumerate(answer if isinstance(answer, list) else [answer]):
            reading.take(said, None, index)
        return reading.finish(streamed=False, cut=False, read_text=read_text)

    def parse_stream(
        self, status: int, chunks: Sequence[tuple[float, bytes]], read_text: TextReader | None = None
    ) -> Completion:
        """A streamed answer, from (arrival time in seconds, bytes) as read."""
        if status != 200:
            return parse_answer(status, b"".join(piece for _, piece in chunks))
        reading, cut = _Reading(), False
        for event in read_events(chunks):
            if event.data.strip() == b"[DONE]":
                break
            try:
                said = load_json(event.data)
            except ValueError:
                cut = not event.complete
                if not cut:
                    reading.error = reading.error or event.data.decode("utf-8", "replace")[:MAX_ERROR_CHARS]
                continue
            try:
                reading.take(said, event.time_s, 0)
            except Exception as fault:  # no list of what an engine can send is complete; what came before is kept
                reading.error = reading.error or fault_text(fault)[:MAX_ERROR_CHARS]
        return reading.finish(streamed=True, cut=cut, read_text=read_text)

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """Never: the same server speaks OpenAI's protocol, and that is what most clients ask it in."""
        return False


class _Reading:
    """An answer being read."""

    def __init__(self) -> None:
        self.error: str | None = None
        self._choices: dict[int, Choice] = {}
        self._texts: dict[int, str] = {}
        self._usage: dict[int, Usage] = {}
        self._finish_events = 0
        self._id: str | None = None

    def take(self, said: Any, time_s: float | None, number: int) -> None:
        """Add an event, or a whole sample that is the `number`th. Raises EngineProtocol."""
        error = error_text(said)
        if error is not None:
            self.error = self.error or error
            return
        if not isinstance(said, dict) or not isinstance(said.get("meta_info"), dict):
            raise EngineProtocol(f"expected an object with 'meta_info', got {said!r:.80}")
        index = said.get("index", number)
        if type(index) is not int or not 0 <= index < MAX_INT:
            raise EngineProtocol(f"expected a whole number as index, got {index!r:.80}")
        meta = said["meta_info"]
        choice = self._choices.setdefault(index, Choice(index))
        usage = self._usage[index] = Usage(*(count(meta.get(name), name) for name in (
            "prompt_tokens", "completion_tokens", "cached_tokens")))
        self._take_tokens(choice, said, usage.completion_tokens, time_s)
        self._take_logprobs(choice, meta)
        reason = meta.get("finish_reason")
        if isinstance(reason, dict):
            reason = reason.get("type")
        if reason is not None:
            choice.finish_reason = str(reason)[:MAX_REASON_CHARS]
            self._finish_events += 1
        if self._id is None and isinstance(meta.get("id"), str):
            self._id = meta["id"]

    def _take_tokens(self, choice: Choice, said: Mapping[str, Any], total: int | None, time_s: float | None) -> None:
        """The ids so far, or, from a server with `--incremental-streaming-output`, those that are new."""
        ids, before = ids_of(said.get("output_ids")) or [], choice.token_ids or []
        new_only = total is not None and len(ids) < total and len(before) + len(ids) == total
        text = said.get("text")
        if isinstance(text, str):
            self._texts[choice.index] = (self._texts.get(choice.index, "") if new_only else "") + text
        choice.token_ids = before + ids if new_only else ids
        if time_s is not None:
            choice.token_times_s += [time_s] * max(0, len(choice.token_ids) - len(before))

    @staticmethod
    def _take_logprobs(choice: Choice, meta: Mapping[str, Any]) -> None:
        """Entries are [log-probability, id, text]. A list is whole or, as the ids, new."""
        told, top = _values(meta.get("output_token_logprobs")), meta.get("output_top_logprobs")
        if told is not None:
            if None in told:
                raise EngineProtocol("expected the log-probability of each generated token, got one that is none")
            whole = len(told) == len(choice.token_ids or ())
            runner_ups = _runner_ups(meta["output_token_logprobs"], top)
            choice.logprobs = ([] if whole else choice.logprobs or []) + [value for value in told if value is not None]
            choice.runner_ups = ([] if whole else choice.runner_ups or []) + runner_ups
        prompt = _values(meta.get("input_token_logprobs"))
        if prompt:
            choice.prompt_logprobs = prompt

    def finish(self, *, streamed: bool, cut: bool, read_text: TextReader | None) -> Completion:
        """The answer. A stream that lacks a finish reason for a sample, or ends inside an event, is truncated."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            choice.text = self._texts.get(choice.index, "")
            if not choice.token_ids and read_text is not None and choice.text:
                choice.token_ids = read_text(choice.text)
        ended = bool(choices) and all(choice.finish_reason is not None for choice in choices)
        return Completion(choices=choices, usage=self._total(), error=self.error, finish_events=self._finish_events,
                          truncated=streamed and (cut or not ended), id=self._id)

    def _total(self) -> Usage | None:
        """Each sample tells its own output, and all the same prompt."""
        if not self._usage:
            return None
        first = self._usage[min(self._usage)]
        outputs = [usage.completion_tokens for usage in self._usage.values()]
        return Usage(first.prompt_tokens, None if None in outputs else sum(filter(None, outputs)), first.cached_tokens)


def _values(entries: Any) -> list[float | None] | None:
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, list) and entry for entry in entries):
        raise EngineProtocol(f"expected lists as log-probabilities, got {entries!r:.80}")
    return [float(entry[0]) if isinstance(entry[0], int | float) else None for entry in entries]


def _runner_ups(told: Sequence[Sequence[Any]], tops: Any) -> list[float | None]:
    """The best token but the chosen one, of each; None where it is not told."""
    if not isinstance(tops, list) or len(tops) != len(told):
        return [None] * len(told)
    found = []
    for (_, chosen, *_), top in zip(told, tops, strict=True):
        others = [value for value, token, *_ in top or () if token != chosen and isinstance(value, int | float)]
        found.append(max(others, default=None))
    return found
