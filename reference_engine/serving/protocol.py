"""What a client asks for, checked before anything is queued: bodies in, a `Job` out, or an `ApiError`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pabench.errors import UsageError
from reference_engine.engine import Engine
from reference_engine.scheduling.sequence import PromptImage, SamplingParams
from reference_engine.serving.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    StreamOptions,
    TokenizeBody,
    read_body,
)
from reference_engine.serving.errors import ApiError
from reference_engine.serving.images import place_images

_DEFAULT_COMPLETION_TOKENS = 16

# What beam search cannot heed: field -> the values that ask nothing of it. It ranks by the model's own distribution.
_WITHOUT_BEAMS: dict[str, tuple[Any, ...]] = {
    "stream": (False,), "best_of": (), "temperature": (0, 1), "top_p": (1,), "top_k": (0, -1), "min_p": (0,),
    "stop": ([],), "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,),
    "logit_bias": ({},), "allowed_token_ids": (),
}
_ONLY_BEAMS: dict[str, tuple[Any, ...]] = {"beam_width": (), "length_penalty": (1,), "early_stopping": (False,)}

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as it stands before each of its answers, and where in it each of its tokens begins."""

    text: str
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is well formed: prompts as ids, one `params` for all of them.

    `params` says what the engine has to do, the other fields what the answer shows of it.
    """

    prompts: tuple[TokenIds, ...]
    images: tuple[PromptImage, ...]  # in the one prompt of a chat
    params: SamplingParams
    n: int                         # answers to show for each prompt: the best of the params.n that are made
    logprobs: int | None
    prompt_logprobs: int | None
    echoes: tuple[Echo, ...] | None  # one for each prompt
    scores_only: bool              # echo without a generated token; the one that the engine makes is dropped
    priority: int
    cache_salt: str | None
    chat: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    request_id: str | None


class Parser:
    """Bodies to jobs, for one served model."""

    def __init__(self, engine: Engine, served_model: str) -> None:
        self._engine, self._tokenizer, self._served_model = engine, engine.tokenizer, served_model

    def completion(self, raw: bytes) -> Job:
        """Parse a body of /v1/completions."""
        body = read_body(CompletionBody, raw, self._served_model)
        prompts, echoes = self._prompts(body)
        max_tokens = _DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        if max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens is 0, expected at least 1, or echo to score the prompt", param="max_tokens")
        return self._job(body, prompts, max_tokens, body.logprobs, echoes if body.echo else None)

    def chat(self, raw: bytes) -> Job:
        """Parse a body of /v1/chat/completions."""
        body = read_body(ChatBody, raw, self._served_model)
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs is given, but logprobs is not true", param="top_logprobs")
        if body.max_tokens == 0:
            raise ApiError(400, "max_tokens is 0, expected at least 1", param="max_tokens")
        prompt, images = self._chat_prompt(body)
        longest = self._engine.scheduler.room(len(prompt), body.beam_width or body.best_of or body.n)
        max_tokens = body.max_completion_tokens or body.max_tokens or max(longest, 1)
        return self._job(
            body, (prompt,), max_tokens, (body.top_logprobs or 0) if body.logprobs else None, None, images)

    def tokenize(self, raw: bytes) -> dict[str, Any]:
        """Answer a body of /tokenize."""
        body = read_body(TokenizeBody, raw, self._served_model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "expected either prompt or messages", param="prompt")
        if body.messages is not None:
            ids, _ = self._chat_prompt(body)
        else:
            ids = self._tokenizer.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
        strings = self._tokenizer.token_strings(ids) if body.return_token_strs else None
        return {"count": len(ids), "max_model_len": self._engine.config.max_model_len, "tokens": ids,
                "token_strs": strings}

    def detokenize(self, raw: bytes) -> dict[str, Any]:
        """Answer a body of /detokenize."""
        body = read_body(DetokenizeBody, raw, self._served_model)
        self._check_ids("tokens", body.tokens)
        return {"prompt": self._tokenizer.decode(body.tokens)}

    def _prompts(self, body: CompletionBody) -> tuple[tuple[TokenIds, ...], tuple[Echo, ...]]:
        """Ids of all prompts, and their echoes where the body asks for them."""
        prompt = body.prompt
        if not prompt and not isinstance(prompt, str):
            raise ApiError(400, "the prompt is empty", param="prompt")
        one = isinstance(prompt, str) or isinstance(prompt[0], int)
        read = [self._prompt(p, body) for p in ([prompt] if one else prompt)]  # type: ignore[arg-type]
        return tuple(ids for ids, _ in read), tuple(echo for _, echo in read if echo is not None)

    def _prompt(self, prompt: str | list[int], body: CompletionBody) -> tuple[TokenIds, Echo | None]:
        if not isinstance(prompt, str):
            if body.echo:
                self._check_ids("prompt", prompt)
            return tuple(prompt), Echo(*self._tokenizer.decode_with_offsets(prompt)) if body.echo else None
        special = body.add_special_tokens is not False
        if body.echo:
            ids, offsets = self._tokenizer.encode_with_offsets(prompt, add_special_tokens=special)
            return ids, Echo(prompt, offsets)
        return self._tokenizer.encode(prompt, add_special_tokens=special), None

    def _chat_prompt(self, body: ChatBody | TokenizeBody) -> tuple[TokenIds, tuple[PromptImage, ...]]:
        """Ids of a conversation as the model's template writes it, and the images in it."""
        messages, vision = body.messages or [], self._engine.vision
        in_parts = vision is not None and self._tokenizer.template_takes_parts
        plain = [message.model_dump() | {"content": message.for_template(sees=vision is not None, in_parts=in_parts)}
                 for message in messages]
        try:
            text = self._tokenizer.chat_text(plain, add_generation_prompt=body.add_generation_prompt)
        except UsageError as error:
            raise ApiError(400, str(error), param="messages") from error
        ids = self._tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens))
        if vision is None:
            return ids, ()
        return place_images(ids, [part for message in messages for part in message.images], vision,
                            self._engine.config.max_model_len)

    def _job(
        self, body: GenerationBody, prompts: tuple[TokenIds, ...], max_tokens: int, logprobs: int | None,
        echoes: tuple[Echo, ...] | None, images: tuple[PromptImage, ...] = (),
    ) -> Job:
        self._check(body, max_tokens)
        options = body.stream_options or StreamOptions()
        return Job(
            prompts=prompts,
            images=images,
            params=_sampling(body, max_tokens, logprobs, echo=echoes is not None),
            n=body.n,
            logprobs=logprobs,
            prompt_logprobs=body.prompt_logprobs,
            echoes=echoes,
            scores_only=max_tokens == 0,
            priority=body.priority,
            cache_salt=body.cache_salt,
            chat=isinstance(body, ChatBody),
            stream=body.stream,
            include_usage=options.include_usage,
            continuous_usage=options.include_usage and options.continuous_usage_stats,
            return_token_ids=body.return_token_ids,
            request_id=body.request_id,
        )

    def _check(self, body: GenerationBody, max_tokens: int) -> None:
        """Raise ApiError for fields that contradict each other or this engine."""
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options is given, but stream is not true", param="stream_options")
        if body.prompt_logprobs is not None and body.stream:
            raise ApiError(400, "prompt_logprobs cannot be streamed", param="prompt_logprobs")
        if body.min_tokens > max_tokens:
            raise ApiError(400, f"min_tokens is {body.min_tokens}, max_tokens {max_tokens}", param="min_tokens")
        if body.priority and self._engine.config.policy != "priority":
            raise ApiError(400, f"priority is {body.priority}, but this engine serves in the order of arrival: start "
                           "it with --scheduling-policy priority", param="priority")
        width = body.beam_width or body.best_of or body.n
        if width > self._engine.config.max_num_seqs:
            raise ApiError(400, f"the request asks for {width} sequences at once, this engine runs at most "
                           f"{self._engine.config.max_num_seqs}", param="best_of" if body.best_of else "n")
        if body.use_beam_search:
            _refuse(body, _WITHOUT_BEAMS, "cannot be used with beam search")
            if body.n > (body.beam_width or body.n):
                raise ApiError(400, f"n is {body.n}, but beam_width only {body.beam_width}", param="n")
            if (body.beam_width or body.n) == 1:
                raise ApiError(400, "beam search with one beam: raise n or beam_width", param="beam_width")
        else:
            _refuse(body, _ONLY_BEAMS, "says something of beam search only: set use_beam_search")
            self._check_best_of(body)
        self._check_ids("allowed_token_ids", body.allowed_token_ids or ())
        self._check_ids("logit_bias", map(int, body.logit_bias))
        self._check_something_is_left(body)

    @staticmethod
    def _check_best_of(body: GenerationBody) -> None:
        if body.best_of is None:
            return
        if body.best_of < body.n:
            raise ApiError(400, f"best_of is {body.best_of}, below n, which is {body.n}", param="best_of")
        if body.best_of > body.n and body.stream:
            raise ApiError(400, f"best_of is {body.best_of} and n {body.n}: what is best is known in the end only, so "
                           "it cannot be streamed", param="best_of")

    def _check_ids(self, param: str, token_ids: Any) -> None:
        size = self._engine.vocab_size
        if (bad := next((token for token in token_ids if not 0 <= token < size), None)) is not None:
            raise ApiError(400, f"{param} holds token id {bad}, this model has ids 0 to {size - 1}", param=param)

    def _check_something_is_left(self, body: GenerationBody) -> None:
        """Before min_tokens all ends are forbidden: some other token must be allowed."""
        if not body.min_tokens:
            return
        ends = {*body.stop_token_ids, *(() if body.ignore_eos else self._engine.sampler.eos_token_ids)}
        allowed = range(self._engine.vocab_size) if body.allowed_token_ids is None else body.allowed_token_ids
        if ends.issuperset(allowed):
            raise ApiError(400, f"min_tokens is {body.min_tokens}, but every token that is allowed ends the text",
                           param="min_tokens")


def _refuse(body: GenerationBody, harmless: dict[str, tuple[Any, ...]], why: str) -> None:
    for name, values in harmless.items():
        if name in body.model_fields_set and getattr(body, name) not in values:
            raise ApiError(400, f"{name} is {getattr(body, name)!r}, which {why}", param=name)


def _sampling(body: GenerationBody, max_tokens: int, logprobs: int | None, *, echo: bool) -> SamplingParams:
    """Sampling parameters of each prompt. An answer is ranked, and a prompt echoed, by log-probabilities."""
    unranked = body.use_beam_search or max_tokens == 0  # beams come ranked, and of no tokens none are best
    made = body.n if unranked else body.best_of or body.n
    ranked = logprobs is None and made > body.n
    told = (body.prompt_logprobs, logprobs if echo else None)
    return SamplingParams(
        max_tokens=max(max_tokens, 1),
        n=made,
        temperature=0.0 if body.use_beam_search else body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        seed=body.seed,
        logprobs=0 if ranked else logprobs,
        prompt_logprobs=max((k for k in told if k is not None), default=None),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        stop_token_ids=frozenset(body.stop_token_ids),
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        beam_width=(body.beam_width or body.n) if body.use_beam_search else 0,
        length_penalty=body.length_penalty,
        early_stopping=body.early_stopping,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
        allowed_token_ids=None if body.allowed_token_ids is None else frozenset(body.allowed_token_ids),
    )
