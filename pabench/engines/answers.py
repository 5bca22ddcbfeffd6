"""OpenAI-style answers, whole and streamed, as engines really send them -> `Completion`.

A whole answer that is not what the protocol promises raises EngineProtocol. Inside a stream a fault becomes
`Completion.error`, so that the tokens that came before it are kept. Both quote an answer at length: who shows them cuts
them, and first takes out the key, which a shorter quotation could end inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pabench.engines.answer_fields import (
    MAX_INT,
    MAX_REASON_CHARS,
    count,
    fault_text,
    ids_of,
    logprobs_of,
    prompt_logprobs_of,
    runner_ups_of,
    text_of,
)
from pabench.engines.answer_json import MAX_ERROR_CHARS, error_text, load_json
from pabench.engines.base import Choice, Completion, TextReader, Usage
from pabench.engines.sse import DATA, END, Event, EventReader
from pabench.engines.template import Template, template_of
from pabench.engines.word_count import WordCount
from pabench.errors import EngineProtocol

_TOGETHER = 64  # reads that are tried at once; of a stream that is often otherwise, so few that little is tried in vain
_TRIES = 4  # templates in a row that no read was alike to, after which no more are made of the stream


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
        raise EngineProtocol(f"expected a JSON object as the answer, got {body[:MAX_ERROR_CHARS]!r}")
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
    state, reader = _Reading(read_text), EventReader()
    for begin in range(0, len(chunks), _TOGETHER):
        _read(state, reader, chunks[begin:begin + _TOGETHER])
        if state.is_done:
            break
    else:
        state.take_events(reader.rest())
    if not state.num_events:
        body = b"".join(piece for _, piece in chunks).strip()
        if body and not body.startswith((b":", b"event:", b"data:")):  # comments and empty events are a stream
            raise EngineProtocol(f"expected server-sent events, got {body[:MAX_ERROR_CHARS]!r}")
    return state.finish(status, streamed=True)


def _read(state: _Reading, reader: EventReader, reads: Sequence[tuple[float, bytes]]) -> None:
    """All `reads` at once where they are alike, else one by one, to the stream's end."""
    if state.template is not None and reader.is_between and state.take_all_alike(state.template, reads):
        return
    for time_s, piece in reads:
        if state.template is not None and reader.is_between and state.take_alike(state.template, piece, time_s):
            continue
        state.take_events(reader.take(time_s, piece))
        if state.is_done:
            return


class _Reading:
    """An answer being read: choices by index, usage, the first error."""

    def __init__(self, read_text: TextReader | None) -> None:
        self.is_done = False
        self.num_events = 0  # but for those that were alike
        self._read_text = read_text
        self.template: Template | None = None
        self._tries = _TRIES
        self._choices: dict[int, _ChoiceReading] = {}
        self._usage: Usage | None = None
        self._id: str | None = None
        self._error: str | None = None
        self._cut = False
        self._finish_events = 0

    def take_alike(self, template: Template, piece: bytes, time_s: float) -> bool:
        """Add a read that is an event spelt as `template`; else return False, and leave it to be parsed."""
        said = template.read(piece)
        if said is None:
            return False
        self._tries = _TRIES
        self._alike.add(*said, None, time_s)
        return True

    def take_all_alike(self, template: Template, reads: Sequence[tuple[float, bytes]]) -> bool:
        """`take_alike` of all `reads` at once, each of which brings one token; else take none, and return False."""
        said = template.read_all([piece for _, piece in reads])
        return said is not None and self._alike.add_tokens(*said, [time_s for time_s, _ in reads])

    def take_events(self, events: Sequence[Event]) -> None:
        """Add events of a stream, to its end."""
        for event in events:
            self.num_events += 1
            self.is_done = event.data.strip() == b"[DONE]"
            if self.is_done:
                break
            # Of several in one read each may be alike.
            if self.template is None or event.name or not self.take_alike(
                    self.template, DATA + event.data + END, event.time_s):
                self._take_event(event)

    def _take_event(self, event: Event) -> None:
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
            self._fail(f"expected a JSON object in the stream, got {event.data[:MAX_ERROR_CHARS]!r}")
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
        except Exception as fault:  # no list of what an engine can send is complete; what came before is kept
            self._fail(fault_text(fault))
            return
        if self._tries:
            self._learn(event, answer)

    def _learn(self, event: Event, answer: Mapping[str, Any]) -> None:
        """Take the event for the template of those to come, if it can be one."""
        template = template_of(event, answer)
        if template is not None:
            self._tries -= 1
            self.template = template if self._tries else None
            self._alike = self._choices[answer["choices"][0].get("index", 0)]

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
            reading.choice.finish_reason = str(reason)[:MAX_REASON_CHARS]
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
    """One sample being read. Tokens are counted from ids, else words (of text that is read as ids), else logprobs, else
    one a chunk with text.
    """

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
        if logprobs is not None:
            self._add_logprobs(logprobs, runner_ups_of(entry["logprobs"], len(logprobs)))
        if prompt_logprobs is not None:
            self.choice.prompt_logprobs = prompt_logprobs
        self.add(text, ids, logprobs, time_s)

    def _add_logprobs(self, logprobs: list[float], runner_ups: list[float | None]) -> None:
        choice = self.choice
        if choice.logprobs is None or choice.runner_ups is None:
            choice.logprobs, choice.runner_ups = [], []
        choice.logprobs += logprobs  # in place: a copy at each event would be quadratic
        choice.runner_ups += runner_ups

    def add(self, text: str, ids: list[int] | None, logprobs: list[float] | None, time_s: float | None) -> None:
        """Add text and ids, and when they came: as many tokens as there are."""
        choice = self.choice
        if text:
            self._texts.append(text)
        if ids is not None:
            if choice.token_ids is None:
                choice.token_ids = []
            choice.token_ids += ids
        if time_s is not None:
            choice.token_times_s += [time_s] * self._count(text, ids, logprobs)

    def add_tokens(self, texts: Sequence[str], ids: list[int] | None, times_s: Sequence[float]) -> bool:
        """`add` chunks of one token each. False, and nothing is added, where their words have to be counted one by one.
        """
        if ids is None and self._words is not None and not self._words.add_one_each(texts):
            return False
        text = "".join(texts)
        self.add(text, ids, None, None)
        self.choice.token_times_s += times_s
        if ids is not None and self._words is not None:
            self._words.pass_over(text)
        return True

    def _count(self, text: str, ids: list[int] | None, logprobs: list[float] | None) -> int:
        if self._words is not None and ids is None:
            return self._words.add(text)  # what its ids are read from, however many log-probabilities stand beside it
        if self._words is not None:
            self._words.pass_over(text)
        told = ids if ids is not None else logprobs
        return len(told) if told is not None else 1 if text else 0

    def finish(self) -> Choice:
        """The sample, with ids read from its text where the engine gave none."""
        choice = self.choice
        choice.text = "".join(self._texts)
        if choice.token_ids is None and self._read_text is not None:
            choice.token_ids = self._read_text(choice.text)
        return choice
