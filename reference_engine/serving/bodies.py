"""The JSON bodies that clients send: their fields, types and ranges. Names are OpenAI's, and vLLM's beyond those."""

from __future__ import annotations

from reprlib import Repr
from typing import Annotated, Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reference_engine.sampling.beam import MAX_LENGTH_PENALTY, WIDTHS
from reference_engine.serving.errors import ApiError

MAX_LOGPROBS = 20
MAX_STOPS = 16  # each is looked for at every token. OpenAI has 4

Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
TokenId = Annotated[int, Field(ge=0)]
_Kind = TypeVar("_Kind", bound="Body")

_SHORT = Repr()  # JSON may be nested deeper than repr() can go
_SHORT.maxstring = 80

# What a template is given beside the messages.
_OF_CHATS: dict[str, tuple[Any, ...]] = {
    "chat_template": (), "chat_template_kwargs": ({},), "continue_final_message": (False,), "documents": ([],),
    "tools": ([],),
}


class Body(BaseModel):
    """Types are taken at their word: "5" is no number. Fields that we do not know are ignored, as vLLM does."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
    model: str | None = None

    # Asked for, these would change the answer, and this engine does not do them: name -> the values that ask nothing.
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}


class StreamOptions(BaseModel):
    """OpenAI's stream_options, with vLLM's continuous_usage_stats (usage on each chunk)."""

    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool = False
    continuous_usage_stats: bool = False

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        return without_nulls(fields) if isinstance(fields, dict) else fields


class GenerationBody(Body):
    """Fields that completions and chats share."""

    n: int = Field(1, ge=1)
    best_of: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    allowed_token_ids: list[TokenId] | None = Field(None, min_length=1)
    use_beam_search: bool = False
    beam_width: int | None = Field(None, ge=WIDTHS[0], le=WIDTHS[-1])
    length_penalty: float = Field(1.0, ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY)
    early_stopping: bool = False
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int = Field(0, ge=0)
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    prompt_logprobs: Logprobs | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    request_id: str | None = Field(None, min_length=1)
    priority: int = 0
    cache_salt: str | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "suffix": ("",), "bad_words": ([],), "prompt_embeds": (), "truncate_prompt_tokens": (),
        "skip_special_tokens": (True,), "logits_processors": ([],),
        "response_format": ({"type": "text"},), "structured_outputs": ({},), "guided_json": (), "guided_regex": ("",),
        "guided_choice": ([],), "guided_grammar": ("",),
        "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    }

    @field_validator("stop")
    @classmethod
    def _few_stops_none_empty(cls, stop: str | list[str]) -> str | list[str]:
        if "" in ([stop] if isinstance(stop, str) else stop):
            raise ValueError("a stop string is empty")
        if isinstance(stop, list) and len(stop) > MAX_STOPS:
            raise ValueError(f"{len(stop)} stop strings, expected at most {MAX_STOPS}")
        return stop

    @field_validator("request_id")
    @classmethod
    def _printable_id(cls, request_id: str | None) -> str | None:
        if request_id is not None and not request_id.isprintable():
            raise ValueError("the request id is no printable text")
        return request_id

    @field_validator("logit_bias")
    @classmethod
    def _token_ids_as_keys(cls, biases: dict[str, float]) -> dict[str, float]:
        if bad := [key for key in biases if not (key.isascii() and key.isdecimal() and len(key) < 20)]:
            raise ValueError(f"{bad[0]!r} is no token id")
        return biases


class CompletionBody(GenerationBody):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Logprobs | None = None
    echo: bool = False


class ChatMessage(BaseModel):
    """One message; content as text, or as a list of parts: text, and images for a model that sees."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def images(self) -> list[dict[str, Any]]:
        """The parts that are images."""
        return [part for part in self.content if part.get("type") == "image_url"] if isinstance(
            self.content, list) else []

    def for_template(self, *, sees: bool, in_parts: bool) -> str | list[dict[str, str]]:
        """The content as templates know it: one text, or texts and places of images. Raises ApiError for other parts.

        sees: whether the model takes images; in_parts: whether its template wants parts, be it a text alone.
        """
        if self.content is None or isinstance(self.content, str):
            return [{"type": "text", "text": self.content or ""}] if in_parts else self.content or ""
        images = self.images if sees else []
        if any(not isinstance(part.get("text"), str) or part.get("type") != "text"
               for part in self.content if part not in images):
            raise ApiError(400, f"message parts other than text{' and image_url' * sees} are not supported",
                           param="messages")
        if images or in_parts:
            return [{"type": "image"} if part in images else {"type": "text", "text": part["text"]}
                    for part in self.content]
        return "".join(part["text"] for part in self.content)


class ChatBody(GenerationBody):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool = True

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = GenerationBody.unsupported | _OF_CHATS | {"echo": (False,)}


class TokenizeBody(Body):
    """Body of /tokenize: a text, or a chat."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = _OF_CHATS


class DetokenizeBody(Body):
    """Body of /detokenize."""

    tokens: list[TokenId]


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something: null is as good as absent."""
    return {name: value for name, value in fields.items() if value is not None}


def read_body(kind: type[_Kind], raw: bytes, served_model: str) -> _Kind:
    """A body, checked field by field; null is as good as absent. Raises ApiError."""
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is no valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is a JSON {type(fields).__name__}, expected an object")
    fields = without_nulls(fields)
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        raise _first_complaint(error) from error
    if body.model is not None and body.model != served_model:
        raise ApiError(404, f"the model {body.model!r} does not exist, this server has {served_model!r}",
                       param="model", kind="NotFoundError")
    for name, harmless in body.unsupported.items():
        if name in fields and fields[name] not in harmless:
            raise ApiError(400, f"{name} is not supported by this engine", param=name)
    return body


def _first_complaint(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    got = _SHORT.repr(first.get("input"))
    param = str(first["loc"][0]) if first["loc"] else None
    if param == "prompt":  # a union: pydantic complains about each of its members
        where, first["msg"] = "prompt", "expected a string, a list of strings, a list of token ids or a list of those"
        got = got if len(first["loc"]) <= 2 else "something else in a list"
    return ApiError(400, f"{where}: {first['msg']}, got {got[:80]}", param=param)
