"""What the load tests share: an examination without an engine, small workloads, servers with one fault each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from pabench.engines.base import EngineFacts
from pabench.load import Workload
from pabench.load.workload import parse_workload
from pabench.probe import PRESETS, ProbeSpec

CAPABILITIES = frozenset({"token_ids", "n", "sampling", "stream", "usage", "ignore_eos"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Examined:
    """An examination that needs no engine. The OpenAI dialect: no metrics, prompts as words."""

    facts: EngineFacts = field(default_factory=lambda: EngineFacts("openai", "stub", 4096, capabilities=CAPABILITIES))
    probe: ProbeSpec | None = field(default_factory=lambda: PRESETS["tiny"])


def workload(**fields: object) -> Workload:
    """Six verified requests of 8 tokens from two users, unless told otherwise."""
    base: dict[str, object] = {
        "name": "test", "description": "a test", "prompt": "probe", "num_requests": 6, "timeout_s": 10.0,
        "warmup_requests": 0, "prompt_tokens": {"law": "fixed", "tokens": 12},
        "output_tokens": {"law": "fixed", "tokens": 8}, "arrivals": {"kind": "closed", "users": 2},
    }
    return parse_workload(base | fields, "test")


@asynccontextmanager
async def serving(handler: Handler, **server_options: float) -> AsyncIterator[str]:
    """A server on a free port whose completions are answered by `handler`; its URL."""
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **server_options)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
