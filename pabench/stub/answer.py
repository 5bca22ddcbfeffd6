"""One answer of the stub: what is said, and when."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from aiohttp import web

from pabench.probe import Codec
from pabench.stub.options import StubOptions
from pabench.stub.request import StubRequest, continue_prompt


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of one chunk."""

    ids: list[int]
    logprobs: list[float]
    first: bool
    last: bool

    @property
    def text(self) -> str:
        return ("" if self.first else " ") + Codec.encode(self.ids)


class Answer:
    """Says `max_tokens` tokens for each of `n` choices.

    Chunk `c` of `k` tokens is due `ttft_ms + c * k * itl_ms` after the request's arrival, whatever became of the
    chunks before it: lateness of one does not add to the next.
    """

    def __init__(self, options: StubOptions, request: StubRequest) -> None:
        self._options = options
        self._request = request
        self._id = f"{'chatcmpl' if request.chat else 'cmpl'}-{uuid.uuid4().hex[:12]}"
        self._created = int(time.time())

    async def whole(self) -> web.Response:
        """The answer in one piece, when its last token is due."""
        request = self._request
        await self._wait_for(request.max_tokens - 1)
        choices = []
        for index in range(request.n):
            pieces = list(self._pieces(index))
            ids = [token for piece in pieces for token in piece.ids]
            logprobs = [value for piece in pieces for value in piece.logprobs]
            choices.append(self._entry(index, _Piece(ids, logprobs, first=True, last=True), "message"))
        answer = self._frame(choices) | {"usage": self._usage(request.max_tokens * request.n)}
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    async def stream(self, http: web.Request) -> web.StreamResponse:
        """The answer as server-sent events."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(http)
        if self._options.role_chunk:
            for index in range(self._request.n):
                await self._send(response, self._frame([self._role_entry(index)]))
        said = 0
        for step in zip(*(self._pieces(index) for index in range(self._request.n)), strict=True):
            await self._wait_for(said)
            if await self._fault(http, response, said):
                return response
            for index, piece in enumerate(step):
                await self._send(response, self._frame([self._entry(index, piece, "delta")]))
            said += len(step[0].ids)
        await self._wait_for(said - 1, self._options.end_ms)
        if self._request.include_usage:
            await self._send(response, self._frame([]) | {"usage": self._usage(said * self._request.n)})
        if not self._options.no_done:
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _fault(self, http: web.Request, response: web.StreamResponse, said: int) -> bool:
        """Do the fault that is due after `said` tokens a choice; whether the answer ends here."""
        options = self._options
        if options.error_after is not None and said >= options.error_after:
            error = {"error": {"message": f"this stub fails after {said} tokens", "type": "stub", "code": 500}}
            await self._send(response, error)
            await response.write_eof()
            return True
        if options.cut_after is not None and said >= options.cut_after:
            if http.transport is not None:
                http.transport.abort()
            return True
        if options.stall_after is not None and said >= options.stall_after:
            await asyncio.Event().wait()  # until the client goes
        return False

    async def _wait_for(self, token: int, more_ms: float = 0.0) -> None:
        """Sleep until token number `token` (from 0) of a choice is due, and `more_ms` longer."""
        due_s = self._request.arrival_s + (self._options.ttft_ms + token * self._options.itl_ms + more_ms) / 1000
        while (left_s := due_s - time.monotonic()) > 0:  # timers count whole milliseconds and may end early
            await asyncio.sleep(left_s)

    def _pieces(self, index: int) -> Iterator[_Piece]:
        request, options = self._request, self._options
        rng = None
        if request.temperature > 0:
            seed = request.seed if request.seed is not None else random.getrandbits(32)
            rng = random.Random(f"{options.seed}/{seed}/{index}")
        tokens = islice(continue_prompt(request.prompt, rng), request.max_tokens)
        said = 0
        while batch := list(islice(tokens, options.tokens_per_chunk)):
            ids = [self._spoilt(token, said + i) for i, (token, _) in enumerate(batch)]
            said += len(batch)
            yield _Piece(ids, [logprob for _, logprob in batch], said == len(batch), said == request.max_tokens)

    def _spoilt(self, token: int, number: int) -> int:
        every = self._options.wrong_every
        return token ^ 1 if every is not None and (number + 1) % every == 0 else token

    def _entry(self, index: int, piece: _Piece, message: str) -> dict[str, Any]:
        """One entry of `choices`; `message` names the field that a chat puts its text into."""
        entry: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": "length" if piece.last else None}
        if self._request.chat:
            role = {"role": "assistant"} if message == "message" else {}
            entry[message] = role | {"content": piece.text}
        else:
            entry["text"] = piece.text
        if self._request.logprobs:
            entry["logprobs"] = self._logprobs(piece)
        if self._request.return_ids:
            entry["token_ids"] = piece.ids
            if piece.first:
                entry["prompt_token_ids"] = list(self._request.prompt)
        return entry

    def _logprobs(self, piece: _Piece) -> dict[str, Any]:
        words = [Codec.word(token) for token in piece.ids]
        if self._request.chat:
            pairs = zip(words, piece.logprobs, strict=True)
            return {"content": [{"token": word, "logprob": logprob, "top_logprobs": []} for word, logprob in pairs]}
        return {"tokens": words, "token_logprobs": piece.logprobs, "top_logprobs": None, "text_offset": []}

    def _role_entry(self, index: int) -> dict[str, Any]:
        said = {"delta": {"role": "assistant", "content": ""}} if self._request.chat else {"text": ""}
        return {"index": index, "logprobs": None, "finish_reason": None, **said}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion" if self._request.chat else "text_completion"
        chunk = ".chunk" if self._request.chat and self._request.stream else ""
        return {"id": self._id, "object": kind + chunk, "created": self._created, "model": self._options.model,
                "choices": choices}

    def _usage(self, completion_tokens: int) -> dict[str, Any]:
        prompt_tokens = len(self._request.prompt)
        return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens, "prompt_tokens_details": {"cached_tokens": 0}}

    async def _send(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        stamped = event | {"pabench_sent_ns": time.monotonic_ns()}
        await response.write(b"data: " + orjson.dumps(stamped) + b"\n\n")
