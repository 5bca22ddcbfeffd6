"""The engine over HTTP: OpenAI's completions and chats, models, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from pabench import __version__
from pabench.errors import EngineDied, UsageError
from reference_engine.scheduling.sequence import Request
from reference_engine.serving import metrics
from reference_engine.serving.answers import Answer, error_event
from reference_engine.serving.async_engine import AsyncEngine
from reference_engine.serving.errors import ApiError
from reference_engine.serving.protocol import Job, Parser

MAX_BODY_BYTES = 32 << 20
_LONG_BODY_BYTES = 32 << 10  # as a text, it takes some 20 ms to tokenise
_IMAGE = b'"image_url"'
_Parsed = TypeVar("_Parsed")


class Server:
    """Routes of one served model."""

    def __init__(self, engine: AsyncEngine, served_model: str, model_root: Path) -> None:
        self._engine, self._model, self._root = engine, served_model, model_root
        self._parser = Parser(engine.engine, served_model)
        self._created = int(time.time())

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[_openai_errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_post("/reset_prefix_cache", self._reset_prefix_cache)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    def runner(self) -> web.AppRunner:
        """What serves the application. A handler is cancelled when its client goes: so requests are aborted."""
        return web.AppRunner(self.app(), handler_cancellation=True, access_log=None, shutdown_timeout=2.0)

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        return await self._serve(http, await parsed(http, self._parser.completion))

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._serve(http, await parsed(http, self._parser.chat))

    async def _serve(self, http: web.Request, job: Job) -> web.StreamResponse:
        arrival_s = time.monotonic()
        self._engine.check_alive()
        try:
            requests = [
                self._engine.engine.prepare(
                    prompt, job.params, arrival_s=arrival_s, priority=job.priority, cache_salt=job.cache_salt,
                    images=job.images)
                for prompt in job.prompts
            ]
        except UsageError as error:
            raise ApiError(400, str(error), param="prompt") from error
        # Two requests may come under one id: it only names the answer, the engine numbers its own requests.
        header = http.headers.get("X-Request-Id", "")
        if not header.isprintable():  # a byte that is no UTF-8 is a surrogate here, which no JSON can hold
            raise ApiError(400, "the request id in X-Request-Id is no printable text")
        request_id = header or job.request_id or uuid.uuid4().hex
        answer = Answer(job, requests, self._model, self._engine.engine.tokenizer, request_id)
        return await (self._stream(http, job, requests, answer) if job.stream else self._whole(requests, answer))

    async def _whole(self, requests: list[Request], answer: Answer) -> web.Response:
        async with contextlib.aclosing(self._engine.generate(requests)) as batches:
            async for batch in batches:
                for request, output in batch:
                    answer.add(request, output)
        return _json(answer.whole())

    async def _stream(
        self, http: web.Request, job: Job, requests: list[Request], answer: Answer
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8",
                                               "Cache-Control": "no-cache"})
        with contextlib.suppress(ConnectionResetError):  # the client has gone, and its requests with it
            await self._write_events(response, http, job, requests, answer)
        return response

    async def _write_events(
        self, response: web.StreamResponse, http: web.Request, job: Job, requests: list[Request], answer: Answer
    ) -> None:
        try:
            async with contextlib.aclosing(self._engine.generate(requests)) as batches:
                await response.prepare(http)
                async for batch in batches:
                    await response.write(b"".join([answer.event(request, output) for request, output in batch]))
            if job.include_usage:
                await response.write(answer.usage_event())
        except EngineDied as error:
            if not response.prepared:
                raise
            await response.write(error_event(_server_error(error)))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    async def _tokenize(self, http: web.Request) -> web.Response:
        return _json(await parsed(http, self._parser.tokenize))

    async def _detokenize(self, http: web.Request) -> web.Response:
        return _json(await parsed(http, self._parser.detokenize))

    async def _reset_prefix_cache(self, http: web.Request) -> web.Response:
        await self._engine.call(self._engine.engine.allocator.reset_prefix_cache)
        return web.Response()

    async def _version(self, http: web.Request) -> web.Response:
        return _json({"version": __version__})

    async def _models(self, http: web.Request) -> web.Response:
        model = {"id": self._model, "object": "model", "created": self._created, "owned_by": "pabench",
                 "root": str(self._root), "parent": None, "max_model_len": self._engine.engine.config.max_model_len}
        return _json({"object": "list", "data": [model]})

    async def _health(self, http: web.Request) -> web.Response:
        self._engine.check_alive()
        return web.Response()

    async def _metrics(self, http: web.Request) -> web.Response:
        body = metrics.render(await self._engine.call(self._engine.engine.snapshot), self._engine.engine.config)
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})


async def parsed(http: web.Request, parse: Callable[[bytes], _Parsed]) -> _Parsed:
    """What `parse` makes of the body. A long one, or one with images, goes to a thread: others' streams go on."""
    raw = await http.read()
    return await asyncio.to_thread(parse, raw) if len(raw) > _LONG_BODY_BYTES or _IMAGE in raw else parse(raw)


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")


def _server_error(error: EngineDied) -> ApiError:
    return ApiError(503, str(error), kind="InternalServerError")


@web.middleware
async def _openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error answer in OpenAI's shape."""
    try:
        return await handler(request)
    except ApiError as error:
        return _json(error.body(), error.status)
    except EngineDied as error:
        return _json(_server_error(error).body(), 503)
    except web.HTTPException as error:  # aiohttp's own: no such path, method, a body too large
        message = f"{request.method} {request.path}: {error.reason}"
        answer = _json(ApiError(error.status, message, kind=error.reason.replace(" ", "")).body(), error.status)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except web.RequestPayloadError:
        request.content.feed_eof()  # or aiohttp would read what is left, and log that it cannot
        encoding = request.headers.get("Content-Encoding", "none")
        answer = _json(ApiError(400, f"the body cannot be decoded, its Content-Encoding is {encoding!a}").body(), 400)
        answer.force_close()
        return answer
    except (asyncio.CancelledError, ConnectionError):
        raise  # the client has gone
    except Exception as error:  # a fault of ours: the client hears of it in the shape it expects, the log has the rest
        traceback.print_exc()
        return _json(ApiError(500, f"internal error: {type(error).__name__}", kind="InternalServerError").body(), 500)
