"""Stand-in engines for tests: an aiohttp server with the routes that a test gives it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from pabench.engines import examine

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(routes):
    """Serve `routes`, {"GET /path": handler or value}; yields the URL. A value is (status, text) or JSON."""
    app = web.Application()
    for route, answer in routes.items():
        method, path = route.split()
        app.router.add_route(method, path, answer if asyncio.iscoroutinefunction(answer) else _fixed(answer))
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def examined_routes(routes, timeout_s=2.0, **kwargs):
    """What `examine` finds of an engine with these routes."""
    async def main():
        async with serving(routes) as url:
            return await examine(url, timeout_s=timeout_s, **kwargs)

    return run(main())


def models(**entry):
    """The answer of /v1/models, of one model."""
    return {"object": "list", "data": [{"id": "m", "object": "model"} | entry]}


def _fixed(answer) -> Handler:
    async def handler(_):
        if isinstance(answer, tuple):
            return web.Response(status=answer[0], text=answer[1])
        return web.json_response(answer)

    return handler


def streaming(pieces, delay_s=0.0, cut=False) -> Handler:
    """A handler that writes `pieces` (bytes) one by one, and then ends or cuts the connection."""

    async def handler(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(delay_s)
        if cut:
            request.transport.abort()
        return response

    return handler


def event(content) -> bytes:
    """One server-sent event."""
    return b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n"


def run(coroutine):
    """Run a test's coroutine, never for more than 20 s."""
    return asyncio.run(asyncio.wait_for(coroutine, 20))
