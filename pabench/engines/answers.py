"""OpenAI-style answers, whole and streamed, as engines really send them -> `Completion`.

A whole answer that is not what the protocol promises raises EngineProtocol. Inside a stream a fault becomes
`Completion.error`, so that the tokens that came before it are kept.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pabench.engines.answer_fields import (
    MAX_INT,
    count,
    ids_of,
    logprobs_of,
    prompt_logprobs_of,
    runner_ups_of,
    text_of,
)
from pabench.engines.base import Choice, Completion, TextReader, Usage
from pabench.engines.sse import Event, read_events
from pabench.errors import EngineProtocol

MAX_ERROR_CHARS = 2000
_MAX_DEPTH = 100   # of an answer; deeper, Python's own recursion could end while it is read


def load_json(data: bytes) -> Any:
    """JSON, fast; also with the NaN and Infinity that Python servers write. Raises ValueError."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = _encodable(json.loads(data.decode("utf-8", "replace")))
        except RecursionError as error:
            raise ValueError("JSON nested too deeply") from error
    if data.count(b"[") + data.count(b"{") > _MAX_DEPTH and _is_deeper(value, _MAX_DEPTH):
        raise ValueError("JSON nested too deeply")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie more than `levels` deep in `value`."""
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _encodable(value: Any) -> Any:
    """`value` without halves of surrogate pairs, which JSON can spell and no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def error_text(answer: Any) -> str | None:
    """What an error answer says, in any engine's spelling; None where it is no error."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if error is None and answer.get("object") == "error":
        error = answer
    if error is None:
        error = answer.get("detail")
    if isinstance(error, dict):
        error = error.get("message") or reprlib.repr(error)
    if error is None or error is False:
        return None
    return (error if isinstance(error, str) else repr(error))[:MAX_ERROR_CHARS]


def parse_answer(status: int, body: bytes, read_text: TextReader | None = None) -> Completion:
    """A whole answer. Raises EngineProtocol when a 200 is no OpenAI completion."""
    try:
        answer = load_json(body)
    except ValueError:
        answer = None
    if status != 200:
        text = error_text(answer) or body[:MAX_ERROR_CHARS].decode("utf-8", "replace").strip() or f"HTTP {status}"
        return Completion(status=status, error=text)
    if not isinstance(answer, dict):
        raise EngineProtocol(f"expected a JSON object as the answer, got {body[:80]!r}")
    error = error_text(answer)
    if error is not None:
        return Completion(status=status, error=error)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise EngineProtocol(f"expected an answer with 'choices', got the fields {sorted(map(str, answer))[:12]}")
    state = _Reading(read_text)
    for choice in choices:
        state.take_choice(choice, None)
    state.take_usage(answer.get("usage"))
    state.take_id(answer.get("id"))
    return state.finish(status)


def parse_stream_answer(
    status: int, chunks: Sequence[tuple[float, bytes]], read_text: TextReader | None = None
) -> Completion:
    """A streamed answer, from (arrival time in seconds, bytes) as read."""
    if status != 200:
        return parse_answer(status, b"".join(piece for _, piece in chunks), read_text)
    state = _Reading(read_text)
    num_events = 0
    for event in read_events(chunks):
        num_events += 1
        if event.data.strip() == b"[DONE]":
            break
        state.take_event(event)
    if num_events == 0:
        body = b"".join(piece for _, piece in chunks).strip()
        if body and not body.startswith((b":", b"event:")):
            raise EngineProtocol(f"expected server-sent events, got {body[:80]!r}")
    return state.finish(status, streamed=True)


class _Reading:
    """An answer being read: choices by index, usage, the first error."""

    def __init__(self, read_text: TextReader | None) -> None:
        self._read_text = read_text
        self._choices: dict[int, _ChoiceReading] = {}
        self._usage: Usage | None = None
        self._id: str | None = None
        self._error: str | None = None
        self._cut = False
        self._finish_events = 0

    def take_event(self, event: Event) -> None:
        """Add one event of a stream."""
        try:
            answer = load_json(event.data)
        except ValueError:
            if event.complete:
                # transformers writes error texts into JSON unescaped, so an unreadable event may well be an error.
                self._fail(event.data.decode("utf-8", "replace"))
            else:
                self._cut = True
            return
        if event.name == "error":
            self._fail(error_text(answer) or event.data.decode("utf-8", "replace"))
            return
        if not isinstance(answer, dict):
            self._fail(f"expected a JSON object in the stream, got {event.data[:80]!r}")
            return
        error = error_text(answer)
        if error is not None:
            self._fail(error)
        try:
            choices = answer.get("choices") or []
            if not isinstance(choices, list):
                raise EngineProtocol(f"expected a list as 'choices', got {choices!r:.80}")
            for choice in choices:
                self.take_choice(choice, event.time_s)
            self.take_usage(answer.get("usage"))
            self.take_id(answer.get("id"))
        except EngineProtocol as fault:
            self._fail(str(fault))

    def take_choice(self, choice: Any, time_s: float | None) -> None:
        """Add one entry of `choices`. Raises EngineProtocol where its fields have the wrong types."""
        if not isinstance(choice, dict):
            raise EngineProtocol(f"expected an object in 'choices', got {choice!r:.80}")
        index = choice.get("index", 0)
        if type(index) is not int or not 0 <= index < MAX_INT:
            raise EngineProtocol(f"expected a whole number as choice index, got {index!r:.80}")
        reading = self._choices.get(index)
        if reading is None:
            reading = self._choices[index] = _ChoiceReading(index, self._read_text)
        reading.take(choice, time_s)
        reason = choice.get("finish_reason")
        if reason not in (None, ""):  # "" is what TGI says until the end
            reading.choice.finish_reason = str(reason)
            self._finish_events += 1

    def take_usage(self, usage: Any) -> None:
        """Add a `usage` object; the last one counts. Engines may send zeros before it."""
        if usage is None:
            return
        if not isinstance(usage, dict):
            raise EngineProtocol(f"expected an object as 'usage', got {usage!r:.80}")
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        self._usage = Usage(
            count(usage.get("prompt_tokens"), "prompt_tokens"),
            count(usage.get("completion_tokens"), "completion_tokens"),
            count(cached, "cached_tokens"),
        )

    def take_id(self, name: Any) -> None:
        """Keep the name of the answer: the first that it bears."""
        if self._id is None and isinstance(name, str):
            self._id = name

    def finish(self, status: int, streamed: bool = False) -> Completion:
        """The answer. A stream that lacks a finish reason for a choice, or ends inside an event, is truncated."""
        choices = [self._choices[index].finish() for index in sorted(self._choices)]
        ended = bool(choices) and all(choice.finish_reason is not None for choice in choices)
        return Completion(
            choices=choices,
            usage=self._usage,
            status=status,
            error=self._error,
            truncated=streamed and (self._cut or not ended),
            finish_events=self._finish_events,
            id=self._id,
        )

    def _fail(self, text: str) -> None:
        self._error = self._error or text.strip()[:MAX_ERROR_CHARS] or "an error without a text"


class _ChoiceReading:
    """One sample being read. Tokens are counted from ids, else logprobs, else words, else one a chunk with text."""

    def __init__(self, index: int, read_text: TextReader | None) -> None:
        self.choice = Choice(index)
        self._words = None if read_text is None else WordCount(read_text)
        self._read_text = read_text
        self._texts: list[str] = []

    def take(self, entry: Mapping[str, Any], time_s: float | None) -> None:
        """Add one chunk's entry, or the whole answer's (`time_s` None)."""
        text = text_of(entry)
        ids = ids_of(entry.get("token_ids"))
        logprobs = logprobs_of(entry.get("logprobs"))
        prompt_logprobs = prompt_logprobs_of(entry.get("prompt_logprobs"))
        if text:
            self._texts.append(text)
        if ids is not None:
            self.choice.token_ids = (self.choice.token_ids or []) + ids
        if logprobs is not None:
            self.choice.logprobs = (self.choice.logprobs or []) + logprobs
            self.choice.runner_ups = (self.choice.runner_ups or []) + runner_ups_of(entry["logprobs"], len(logprobs))
        if prompt_logprobs is not None:
            self.choice.prompt_logprobs = prompt_logprobs
        if time_s is not None:
            arrived = self._count(text, ids, logprobs)
            self.choice.token_times_s.extend([time_s] * arrived)

    def _count(self, text: str, ids: list[int] | None, logprobs: list[float] | None) -> int:
        words = self._words.add(text) if self._words is not None else None
        if ids is not None:
            return len(ids)
        if logprobs is not None:
            return len(logprobs)
        if words is not None:
            return words
        return 1 if text else 0

    def finish(self) -> Choice:
        """The sample, with ids read from its text where the engine gave none."""
        choice = self.choice
        choice.text = "".join(self._texts)
        if choice.token_ids is None and self._read_text is not None:
            choice.token_ids = self._read_text(choice.text)
        return choice


class WordCount:
    """How many new words each piece of text brings. A word cut by a chunk's edge counts when its first part comes."""

    def __init__(self, read_text: TextReader) -> None:
        self._read_text = read_text
        self._tail = ""       # from the last word on: it may still grow
        self._in_tail = 0

    def add(self, text: str) -> int:
        """Take a piece; how many words it brings."""
        self._tail += text
        in_tail = len(self._read_text(self._tail))
        new = max(0, in_tail - self._in_tail)
        # All but the last word is settled: drop it, so that the work stays linear in the text.
        words = self._tail.rsplit(None, 1)
        if len(words) == 2 and not self._tail[-1].isspace():
            self._tail = words[1]
            in_tail = len(self._read_text(self._tail))
        elif self._tail and self._tail[-1].isspace():
            self._tail, in_tail = "", 0
        self._in_tail = in_tail
        return new
