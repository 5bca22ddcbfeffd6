"""Tokens to JSON in the shapes of OpenAI's API as vLLM writes them: whole answers, and chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from reference_engine.scheduling.sequence import Request, TokenLogprobs, TokenOutput
from reference_engine.serving.errors import ApiError
from reference_engine.serving.logprobs import Told, chat_logprobs, completion_logprobs, prompt_logprobs
from reference_engine.serving.protocol import Job, TokenIds
from reference_engine.serving.tokenizer import Tokenizer

_MARK = uuid.uuid4().hex  # stands in a chunk where a frame has a gap; no client can know it
_QUOTED_MARK = b'"%b"' % _MARK.encode()


class _Frame(NamedTuple):
    """An encoded chunk with gaps for the text and the token id: nearly all chunks of a stream differ in these alone."""

    before: bytes
    between: bytes
    after: bytes | None  # None: shows no token id

    @classmethod
    def of(cls, chunk: dict[str, Any]) -> _Frame:
        """From a chunk with marks for its text and its token ids."""
        parts = _event(chunk).split(_QUOTED_MARK)
        return cls(parts[0], parts[1], parts[2] if len(parts) == 3 else None)

    def fill(self, text: str, token_id: int) -> bytes:
        """The event."""
        if self.after is None:
            return self.before + orjson.dumps(text) + self.between
        return b"%b%b%b[%d]%b" % (self.before, orjson.dumps(text), self.between, token_id, self.after)


@dataclass(slots=True)
class _Choice:
    """What one choice has so far."""

    text: list[str] = field(default_factory=list)
    text_len: int = 0  # the echoed prompt included
    token_ids: list[int] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    frame: _Frame | None = None

    def add(self, output: TokenOutput) -> None:
        """Take a token in."""
        if output.logprobs is not None:
            self.told.append(Told(output.token_id, output.logprobs, self.text_len))
        self.text.append(output.text)
        self.text_len += len(output.text)
        self.token_ids.append(output.token_id)
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason

    @property
    def mean_logprob(self) -> float:
        """Of its tokens."""
        return sum(told.logprobs.chosen for told in self.told if told.logprobs) / len(self.told)


class Answer:
    """One answer in the making: feed it tokens, take events or the whole. Choices: prompt by prompt, n each."""

    def __init__(
        self, job: Job, requests: Sequence[Request], model: str, tokenizer: Tokenizer, request_id: str
    ) -> None:
        self._job, self._requests, self._tokenizer = job, requests, tokenizer
        self._prompt_of = {request.id: at for at, request in enumerate(requests)}
        self._choices = [_Choice() for _ in range(len(requests) * job.params.n)]
        if job.echoes is not None:
            for at, choice in enumerate(self._choices):
                choice.text_len = len(job.echoes[at // job.params.n].text)
        self._head = {
            "id": ("chatcmpl-" if job.chat else "cmpl-") + request_id,
            "object": self._kind(whole=not job.stream),
            "created": int(time.time()),
            "model": model,
        }

    def _kind(self, *, whole: bool) -> str:
        if not self._job.chat:
            return "text_completion"
        return "chat.completion" if whole else "chat.completion.chunk"

    def usage(self) -> dict[str, Any]:
        """Token counts so far: of the prompts, once each, and of all choices that are shown."""
        prompt = sum(len(p) for p in self._job.prompts)
        made = sum(len(choice.token_ids) for choice in self._choices)
        cached = sum(request.num_cached_tokens for request in self._requests)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
                "prompt_tokens_details": {"cached_tokens": cached}}

    def add(self, request: Request, output: TokenOutput) -> None:
        """Take in a token of a whole answer."""
        choice = self._choices[self._prompt_of[request.id] * self._job.params.n + output.index]
        if self._job.scores_only:
            choice.finish_reason = "length"
        else:
            choice.add(output)

    # A stream.

    def event(self, request: Request, output: TokenOutput) -> bytes:
        """What a token adds to a stream: a chunk, and before a chat's first token one with the role."""
        index = self._prompt_of[request.id] * self._job.params.n + output.index
        choice = self._choices[index]
        if choice.frame is not None and output.finish_reason is None and output.logprobs is None:
            choice.add(output)
            return choice.frame.fill(output.text, output.token_id)
        if choice.token_ids:
            self.add(request, output)
            return self._token_event(index, output.text, choice.told[-1:], [output.token_id])
        if not self._job.continuous_usage:
            choice.frame = _Frame.of(self._chunk(self._delta(index, _MARK, ids=_MARK)))
        self.add(request, output)
        return self._first_event(index, output)

    def _first_event(self, index: int, output: TokenOutput) -> bytes:
        choice, prompt = self._choices[index], index // self._job.params.n
        text, ids = ("", []) if self._job.scores_only else (output.text, [output.token_id])
        if self._job.chat:
            return _event(self._role_chunk(index)) + self._token_event(index, text, choice.told, ids)
        if self._job.echoes is not None:
            text = self._job.echoes[prompt].text + text
        return self._token_event(index, text, self._told(index), ids, self._job.prompts[prompt])

    def _token_event(
        self, index: int, text: str, told: Sequence[Told], ids: list[int], prompt_ids: TokenIds | None = None
    ) -> bytes:
        choice = self._choices[index]
        return _event(self._chunk(self._delta(
            index, text, told, choice.finish_reason, choice.stop_reason, ids=ids, prompt_ids=prompt_ids)))

    def _delta(
        self, index: int, text: str, told: Sequence[Told] = (), finish: str | None = None,
        stop: int | str | None = None, *, ids: list[int] | str, prompt_ids: TokenIds | None = None,
    ) -> dict[str, Any]:
        """The choice of a chunk."""
        shows_ids = self._job.return_token_ids
        logprobs = self._logprobs(told)
        end = {"finish_reason": finish, "stop_reason": stop}
        shown = ids if shows_ids else None
        if self._job.chat:
            return {"index": index, "delta": {"content": text}, "logprobs": logprobs, **end, "token_ids": shown}
        return {"index": index, "text": text, "logprobs": logprobs, **end,
                "prompt_token_ids": prompt_ids if shows_ids else None, "token_ids": shown}

    def _role_chunk(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        chunk = self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
        chunk["prompt_token_ids"] = self._job.prompts[0] if self._job.return_token_ids else None
        return chunk

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": self.usage()} if self._job.continuous_usage else {}
        return {**self._head, "choices": [choice], **usage}

    def usage_event(self) -> bytes:
        """The chunk without choices that ends a stream when include_usage is set."""
        return _event({**self._head, "choices": [], "usage": self.usage()})

    # The whole.

    def whole(self) -> dict[str, Any]:
        """The whole answer."""
        self._keep_best()
        shape = self._chat_choice if self._job.chat else self._completion_choice
        choices = [shape(index, choice) for index, choice in enumerate(self._choices)]
        body = {**self._head, "choices": choices, "usage": self.usage()}
        if self._job.chat:
            body["prompt_token_ids"] = self._job.prompts[0] if self._job.return_token_ids else None
            body["prompt_logprobs"] = self._prompt_logprobs(0)
        return body

    def _keep_best(self) -> None:
        """Of the choices made for a prompt the n whose tokens are likeliest on average, best first."""
        made, n = self._job.params.n, self._job.n
        if made > n:
            families = [self._choices[at : at + made] for at in range(0, len(self._choices), made)]
            ranked = [sorted(family, key=lambda choice: -choice.mean_logprob)[:n] for family in families]
            self._choices = [choice for family in ranked for choice in family]

    def _completion_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        ids, prompt = self._job.return_token_ids, index // self._job.n
        echoed = [] if self._job.echoes is None else [self._job.echoes[prompt].text]
        return {
            "index": index,
            "text": "".join(echoed + choice.text),
            "logprobs": self._logprobs(self._told(index)),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "prompt_token_ids": self._job.prompts[prompt] if ids else None,
            "token_ids": choice.token_ids if ids else None,
            "prompt_logprobs": self._prompt_logprobs(prompt),
        }

    def _chat_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.text)},
            "logprobs": self._logprobs(choice.told),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if self._job.return_token_ids else None,
        }

    # Log-probabilities.

    def _told(self, index: int) -> list[Told]:
        """What is known of a completion's tokens, those of an echoed prompt first."""
        told = self._choices[index].told
        if self._job.echoes is None or self._job.logprobs is None:
            return told
        prompt = index * len(self._requests) // len(self._choices)
        request, count = self._requests[prompt], self._job.logprobs
        cut = [lp and TokenLogprobs(lp.chosen, lp.top[:count], lp.rank) for lp in request.prompt_logprobs]
        return [*map(Told, self._job.prompts[prompt], cut, self._job.echoes[prompt].offsets), *told]

    def _logprobs(self, told: Sequence[Told]) -> dict[str, Any] | None:
        if not told or self._job.logprobs is None:
            return None
        return (chat_logprobs if self._job.chat else completion_logprobs)(self._tokenizer, told)

    def _prompt_logprobs(self, prompt: int) -> list[dict[str, Any] | None] | None:
        count = self._job.prompt_logprobs
        if count is None:
            return None
        return prompt_logprobs(
            self._tokenizer, self._job.prompts[prompt], self._requests[prompt].prompt_logprobs, count)


def error_event(error: ApiError) -> bytes:
    """What a stream says when it breaks off."""
    return _event(error.body())


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
