"""A request that met a closed kept connection goes out once more, and its time is that of the first sending."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from pabench.load.client import LoadClient, PreparedRequest
from pabench.load.connection import Exchange
from pabench.probe import Codec
from tests.load.support import against, only, serving, stream, workload


@pytest.mark.parametrize(("closes", "num_read", "fault"), [({2}, 3, None), ({2, 3, 4}, 3, "reset")])
def test_a_second_sending_keeps_the_first_time_and_is_the_last(
    closes: set[int], num_read: int, fault: str | None
) -> None:
    """The server works 10 ms on the request before it closes: the latency must hold them."""
    read = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal read
        await request.read()
        read += 1
        if read in closes:
            await asyncio.sleep(0.01)
            assert request.transport is not None
            request.transport.close()
        return web.Response(body=b"x")

    async def go() -> tuple[Exchange, int]:
        async with serving(handler) as url, LoadClient(url, timeout_s=5.0) as client:
            one = PreparedRequest(0, "/v1/completions", b"{}", {})
            await client.send(one, 0.0)
            return await client.send(one, 0.0), client.num_sent_again

    exchange, num_sent_again = asyncio.run(go())
    assert (read, num_sent_again, exchange.fault) == (num_read, 1, fault)
    assert exchange.sent_s is not None
    assert exchange.end_s is not None
    assert exchange.end_s - exchange.sent_s >= 0.01


def test_a_kept_connection_that_closes_as_it_is_taken_is_no_fault_of_the_engine(tmp_path: Path) -> None:
    """The second request over a connection finds it closed, every time: it goes out again over a fresh one."""
    seen: dict[object, int] = {}
    closed = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal closed
        connection = request.transport
        seen[connection] = seen.get(connection, 0) + 1
        if seen[connection] > 1:
            closed += 1
            assert connection is not None
            connection.close()
            return web.Response()
        ids = Codec.decode((await request.json())["prompt"])
        return web.Response(body=stream(ids[3:11]))

    run = against(tmp_path / "run", workload(arrivals={"kind": "closed", "users": 1}), handler)
    only(run, "ok")
    assert closed > 0
    assert f"{closed} requests were sent again" in " ".join(run.manifest.notes)


def test_a_request_dropped_after_work_is_an_error(tmp_path: Path) -> None:
    """Over a kept connection too: the engine had the request, and did not answer it."""
    asked = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        ids = Codec.decode((await request.json())["prompt"])
        if asked % 2 == 0:
            await asyncio.sleep(0.3)
            assert request.transport is not None
            request.transport.close()
        return web.Response(body=stream(ids[3:11]))

    run = against(tmp_path / "run", workload(num_requests=4, arrivals={"kind": "closed", "users": 1}), handler)
    assert run.requests["outcome"].tolist() == ["ok", "error", "ok", "error"]
    assert asked == 4
