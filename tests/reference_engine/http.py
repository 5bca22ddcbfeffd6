"""A server in this process and a client to it."""

from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp
import orjson
from aiohttp import web

from reference_engine.serving.async_engine import AsyncEngine
from reference_engine.serving.server import Server


class Client:
    """One server in this process, and a session to it."""

    def __init__(self, session, url, runtime):
        self.session, self.url, self.runtime = session, url, runtime

    async def post(self, body, path="/v1/completions", **options):
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self.session.post(self.url + path, data=data, **options) as response:
            raw = await response.read()
            return response.status, orjson.loads(raw) if raw else None

    async def stream(self, body, path="/v1/completions"):
        """Events of a stream, as (raw lines, parsed chunks)."""
        body = {**body, "stream": True}
        async with self.session.post(self.url + path, data=orjson.dumps(body)) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            raw = await response.read()
        assert raw.endswith(b"data: [DONE]\n\n")
        events = raw.split(b"\n\n")[:-2]
        assert all(event.startswith(b"data: {") for event in events)
        return [orjson.loads(event[6:]) for event in events]

    async def gauge(self, name):
        async with self.session.get(self.url + "/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            for line in (await response.text()).splitlines():
                if line.startswith(f"pabench_ref:{name} "):
                    return float(line.split()[1])
        raise AssertionError(name)

    async def wait_idle(self, timeout_s=5.0):
        end = time.monotonic() + timeout_s
        while await self.gauge("num_requests_running") + await self.gauge("num_requests_waiting"):
            assert time.monotonic() < end, "requests are left"
            await asyncio.sleep(0.01)
        assert await self.gauge("kv_cache_usage") == 0
        assert await self.gauge("kv_token_state_slots") == 0


@contextlib.asynccontextmanager
async def serving(engine):
    runtime = AsyncEngine(engine)
    runner = Server(runtime, "probe", "/models/probe").runner()
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    timeout = aiohttp.ClientTimeout(total=30)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Client(session, f"http://127.0.0.1:{port}", runtime)
    finally:
        runtime.stop()
        await runner.cleanup()


def serve(engine, scenario):
    """Run a coroutine function against a server of `engine`."""

    async def main():
        async with serving(engine) as client:
            await asyncio.wait_for(scenario(client), 40)

    asyncio.run(main())


def exact(ring, max_tokens, **more):
    return {"prompt": list(ring.prompt), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **more}
