"""What the load tests share: an examination without an engine, small workloads, servers with one fault each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from pabench.analysis import Run, load_run
from pabench.engines.base import EngineFacts
from pabench.load import OUTCOMES, Manifest, Progress, ProgressState, Workload, run_loop, run_workload
from pabench.load.workload import parse_workload
from pabench.probe import PRESETS, ProbeSpec
from pabench.stub import StubOptions, StubServer

_FAST = {"ttft_ms": 5.0, "itl_ms": 1.0}  # of a stub
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


def checked(folder: Path, manifest: Manifest) -> Run:
    """The run read back, its books balanced."""
    run = load_run(folder)
    assert run.manifest == manifest
    assert set(manifest.outcomes) == set(OUTCOMES)
    assert sum(manifest.outcomes.values()) == len(run.requests)
    assert manifest.outcomes == {name: int((run.requests["outcome"] == name).sum()) for name in OUTCOMES}
    return run


async def broken_off(run: Callable[[Progress], Coroutine[Any, Any, Manifest]], done: int) -> None:
    """A run, of the progress that it is given, that is interrupted when `done` requests of it are over."""
    enough = asyncio.Event()

    def note(state: ProgressState) -> None:
        if state.done >= done:
            enough.set()

    running = asyncio.create_task(run(note))
    await enough.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def against(folder: Path, load: Workload, handler: Handler, **server_options: float) -> Run:
    async def go() -> Manifest:
        async with serving(handler, **server_options) as url:
            return await run_workload(Examined(), load, folder, url=url, label="server")

    return checked(folder, run_loop(go()))


def only(run: Run, outcome: str, kind: str | None = None) -> None:
    assert set(run.requests["outcome"]) == {outcome}
    if kind is None:
        assert run.requests["error_kind"].isna().all()
    else:
        assert set(run.requests["error_kind"]) == {kind}


def stream(ids: list[int], finish: bool = True) -> bytes:
    """A completions stream of these ids as the probe's words."""
    events = [{"choices": [{"index": 0, "text": f"t{token} ", "finish_reason": None}]} for token in ids]
    if finish:
        events.append({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def against_stub(folder: Path, load: Workload, **options: float) -> Run:
    async def go() -> Manifest:
        async with StubServer(StubOptions(**(_FAST | options))) as server:
            return await run_workload(Examined(), load, folder, url=server.url, label="stub")

    return checked(folder, asyncio.run(go()))
