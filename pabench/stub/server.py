"""The stub's HTTP server: as a process (`serve`) or inside a test (`StubServer`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import orjson
import uvloop
from aiohttp import web

from pabench.errors import UsageError
from pabench.stub.answer import Answer
from pabench.stub.options import StubOptions
from pabench.stub.request import Refused, StubRequest, read_request

_MAX_BODY_BYTES = 64 * 2**20
_DIED_STATUS = 70


class _Died(Exception):
    """The stub shall be gone now."""


class Stub:
    """The stub's routes. `die` is called when one generation more than `die_after` is asked for."""

    def __init__(self, options: StubOptions, die: Callable[[], None]) -> None:
        self.options = options
        self.generations = 0
        self.running = 0
        self.bodies: list[Any] = []  # of the last generation requests, for tests
        self._die = die

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.add_routes([
            web.get("/health", self._health),
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
            web.post("/v1/completions", self._generate),
            web.post("/v1/chat/completions", self._generate),
        ])
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self.options.model, "object": "model", "created": 0, "owned_by": "pabench-stub",
                 "max_model_len": self.options.max_model_len}
        return _json({"object": "list", "data": [model]})

    async def _metrics(self, _: web.Request) -> web.Response:
        page = (
            "# TYPE pabench_stub:num_requests_running gauge\n"
            f"pabench_stub:num_requests_running {self.running}\n"
            "# TYPE pabench_stub:generations_total counter\n"
            f"pabench_stub:generations_total {self.generations}\n"
        )
        return web.Response(text=page)

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        arrival_s = time.monotonic()
        self.running += 1
        try:
            request = self._admit(await http.read(), http.path.endswith("chat/completions"), arrival_s)
            answer = Answer(self.options, request)
            return await (answer.stream(http) if request.stream else answer.whole())
        except Refused as refusal:
            error = {"message": str(refusal), "type": "stub", "param": None, "code": refusal.status}
            return _json({"error": error}, refusal.status)
        except _Died:
            self._die()  # a process ends here, and all its sockets at once
            if http.transport is not None:
                http.transport.abort()
            return web.Response()
        finally:
            self.running -= 1

    def _admit(self, data: bytes, chat: bool, arrival_s: float) -> StubRequest:
        options, number = self.options, self.generations
        if options.die_after is not None and number >= options.die_after:
            raise _Died
        self.generations += 1
        if options.status is not None:
            raise Refused(options.status, f"this stub refuses every request with {options.status}")
        if int((number + 1) * options.error_rate) > int(number * options.error_rate):
            raise Refused(500, f"this stub fails {options.error_rate:.0%} of the requests")
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"the body is no JSON: {error}") from error
        self.bodies = [*self.bodies[-99:], body]
        return read_request(body, chat, arrival_s, options.max_model_len)


def _json(content: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


class StubServer:
    """A stub inside this process, on a free port: an async context manager for tests."""

    def __init__(self, options: StubOptions | None = None) -> None:
        self.options = replace(options or StubOptions(), port=0)
        self.stub = Stub(self.options, self._stop_listening)
        self.url = ""
        self._runner = web.AppRunner(self.stub.app(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> StubServer:
        self.url = await _listen(self._runner, self.options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        if self._closing is not None:
            await self._closing

    def _stop_listening(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_sites())

    async def _close_sites(self) -> None:
        for site in list(self._runner.sites):
            await site.stop()


def serve(options: StubOptions) -> None:
    """Serve until interrupted or terminated. Raises UsageError when the address cannot be had."""
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options))


async def _serve(options: StubOptions) -> None:
    stub = Stub(options, lambda: os._exit(_DIED_STATUS))
    runner = web.AppRunner(stub.app(), handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        url = await _listen(runner, options)
        print(f"stub engine at {url}: TTFT {options.ttft_ms:g} ms, ITL {options.itl_ms:g} ms", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, options: StubOptions) -> str:
    """Start listening; the URL."""
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port, backlog=1024)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise UsageError(
            f"cannot listen at {options.host}:{options.port}: {error.strerror}. Take another port, 0 for any free one"
        ) from error
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"
