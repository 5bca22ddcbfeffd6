"""What a client may ask, checked before anything is queued: JSON bodies in, a `Job` out, or an `ApiError`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pabench.errors import UsageError
from reference_engine.scheduling.sequence import SamplingParams
from reference_engine.serving.tokenizer import Tokenizer

MAX_LOGPROBS = 20
_DEFAULT_COMPLETION_TOKENS = 16

Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class ApiError(Exception):
    """An answer in OpenAI's shape of an error."""

    def __init__(self, status: int, message: str, *, param: str | None = None, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.kind = status, message, param, kind

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


class _Strict(BaseModel):
    """Types are taken at their word: "5" is no number. Fields that we do not know are ignored, as vLLM does."""

    model_config = ConfigDict(strict=True, extra="ignore")


class StreamOptions(_Strict):
    """OpenAI's stream_options, with vLLM's continuous_usage_stats (usage on each chunk)."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Generation(_Strict):
    """Fields that completions and chats share."""

    model: str | None = None
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(1.0, ge=0)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    request_id: str | None = None
    add_special_tokens: bool | None = None

    # Asked for, these would change the answer, and this engine does not do them: name -> the values that ask nothing.
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,),
        "logit_bias": ({},), "use_beam_search": (False,), "prompt_logprobs": (), "echo": (False,), "suffix": ("",),
        "best_of": (1,), "tools": ([],), "response_format": ({"type": "text"},), "structured_outputs": ({},),
        "allowed_token_ids": (), "bad_words": ([],), "prompt_embeds": (),
    }

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop is not None and "" in ([stop] if isinstance(stop, str) else stop):
            raise ValueError("a stop string is empty")
        return stop

    def sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Sampling parameters of each prompt."""
        if self.min_tokens > max_tokens:
            raise ApiError(400, f"min_tokens is {self.min_tokens}, max_tokens {max_tokens}", param="min_tokens")
        return SamplingParams(
            max_tokens=max_tokens,
            n=self.n,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            seed=self.seed,
            logprobs=logprobs,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
        )


class CompletionBody(_Generation):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Logprobs | None = None


class ChatMessage(_Strict):
    """One message; content as text, or as a list of text parts."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatBody(_Generation):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is well formed: prompts as ids, one `params` for all of them."""

    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    chat: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    request_id: str | None


_Body = TypeVar("_Body", bound=_Generation)


class Parser:
    """Bodies to jobs, for one served model. `room(prompt_tokens, n)` is the longest output that could ever fit."""

    def __init__(self, tokenizer: Tokenizer, served_model: str, room: Callable[[int, int], int]) -> None:
        self._tokenizer, self._served_model, self._room = tokenizer, served_model, room

    def completion(self, raw: bytes) -> Job:
        """Parse a body of /v1/completions."""
        body = self._validate(CompletionBody, raw)
        prompts = self._prompts(body)
        return self._job(body, prompts, body.max_tokens or _DEFAULT_COMPLETION_TOKENS, body.logprobs, chat=False)

    def chat(self, raw: bytes) -> Job:
        """Parse a body of /v1/chat/completions."""
        body = self._validate(ChatBody, raw)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs is given, but logprobs is not true", param="top_logprobs")
        messages = [m.model_dump() | {"content": _text(m.content)} for m in body.messages]
        try:
            text = self._tokenizer.chat_text(messages, add_generation_prompt=body.add_generation_prompt)
        except UsageError as error:
            raise ApiError(400, str(error), param="messages") from error
        prompt = self._tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens))
        max_tokens = body.max_completion_tokens or body.max_tokens or max(self._room(len(prompt), body.n), 1)
        return self._job(body, (prompt,), max_tokens, (body.top_logprobs or 0) if body.logprobs else None, chat=True)

    def _validate(self, kind: type[_Body], raw: bytes) -> _Body:
        try:
            fields = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise ApiError(400, f"the body is no valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ApiError(400, f"the body is a JSON {type(fields).__name__}, expected an object")
        try:
            body = kind.model_validate(fields)
        except ValidationError as error:
            raise _first_complaint(error) from error
        if body.model is not None and body.model != self._served_model:
            raise ApiError(404, f"the model {body.model!r} does not exist, this server has {self._served_model!r}",
                           param="model", kind="NotFoundError")
        for name, harmless in body.unsupported.items():
            if fields.get(name) is not None and fields[name] not in harmless:
                raise ApiError(400, f"{name} is not supported by this engine", param=name)
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options is given, but stream is not true", param="stream_options")
        return body

    def _prompts(self, body: CompletionBody) -> tuple[tuple[int, ...], ...]:
        prompt = body.prompt
        special = body.add_special_tokens is not False
        if isinstance(prompt, str):
            return (self._tokenizer.encode(prompt, add_special_tokens=special),)
        if not prompt:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if isinstance(prompt[0], int):
            return (tuple(prompt),)
        return tuple(
            self._tokenizer.encode(p, add_special_tokens=special) if isinstance(p, str) else tuple(p)
            for p in prompt
        )

    @staticmethod
    def _job(
        body: _Generation, prompts: tuple[tuple[int, ...], ...], max_tokens: int, logprobs: int | None, *, chat: bool
    ) -> Job:
        options = body.stream_options or StreamOptions()
        return Job(
            prompts=prompts,
            params=body.sampling(max_tokens, logprobs),
            chat=chat,
            stream=bool(body.stream),
            include_usage=options.include_usage,
            continuous_usage=options.include_usage and options.continuous_usage_stats,
            return_token_ids=bool(body.return_token_ids),
            request_id=body.request_id,
        )


def _text(content: str | list[dict[str, Any]] | None) -> str:
    """A message's text. Raises ApiError for parts that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
        raise ApiError(400, "message parts other than text are not supported", param="messages")
    return "".join(part["text"] for part in content)


def _first_complaint(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    got = repr(first.get("input"))
    param = str(first["loc"][0]) if first["loc"] else None
    if param == "prompt":  # a union: pydantic complains about each of its members
        where, first["msg"] = "prompt", "expected a string, a list of strings, a list of token ids or a list of those"
        got = got if len(first["loc"]) <= 2 else "something else in a list"
    return ApiError(400, f"{where}: {first['msg']}, got {got[:80]}", param=param)
