"""A request that met a closed kept connection goes out once more, and its time is that of the first sending."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from pabench.load.client import Exchange, LoadClient, PreparedRequest
from tests.load.support import serving


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
