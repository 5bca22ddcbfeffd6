"""Clients that go, and an engine that dies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import orjson
import pytest

from tests.reference_engine.helpers import assert_exact, rings
from tests.reference_engine.http import exact


@pytest.mark.parametrize(("n", "stream", "more"), [
    (1, True, {}), (4, True, {}), (1, False, {}), (4, False, {}), (4, False, {"n": 1, "best_of": 4}),
    (4, False, {"use_beam_search": True}),
])
def test_a_client_that_goes_frees_its_blocks(with_server, n, stream, more):
    async def scenario(client):
        ring, other = rings(30, 31)
        body = orjson.dumps(exact(ring, 400, **{"n": n, "stream": stream, **more}))
        kept = asyncio.create_task(client.post(exact(other, 200)))
        response = asyncio.create_task(client.session.post(client.url + "/v1/completions", data=body))
        while await client.gauge("num_requests_running") < n + 1:
            await asyncio.sleep(0.005)
        if stream:
            (await response).close()
        else:
            response.cancel()
        start = await client.gauge("generation_tokens_total")
        status, whole = await kept
        assert status == 200
        assert_exact(other, whole["choices"][0]["token_ids"], 200)
        await client.wait_idle()
        assert await client.gauge("generation_tokens_total") - start < 200 + 20 * n

    with_server(scenario)


def test_a_client_that_goes_between_two_writes_is_no_fault_of_the_server(with_server, caplog):
    """The kernel refuses the first of them; the handler learns of it by the second, before it is cancelled."""
    async def scenario(client):
        body = orjson.dumps(exact(rings(30)[0], 30, stream=True))
        address = client.url.removeprefix("http://").split(":")
        peer = socket.create_connection((address[0], int(address[1])))
        generate, left = client.runtime.generate, asyncio.Event()

        async def generate_and_lose_the_client(requests):
            async with contextlib.aclosing(generate(requests)) as batches:
                batch = await anext(batches)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
                peer.close()
                left.set()
                for _ in range(4):
                    yield batch

        client.runtime.generate = generate_and_lose_the_client
        peer.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.wait_for(left.wait(), 10)
        await client.wait_idle()

    with_server(scenario)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_client_that_goes_while_waiting_or_in_prefill_frees_its_blocks(with_server):
    async def scenario(client):
        first, second, third = rings(400, 30, 30)
        slow = asyncio.create_task(client.post(exact(first, 90)))
        bodies = [orjson.dumps(exact(ring, 100)) for ring in (second, third)]
        gone = [asyncio.create_task(client.session.post(client.url + "/v1/completions", data=b)) for b in bodies]
        while await client.gauge("num_requests_waiting") < 2:
            await asyncio.sleep(0.002)
        for task in (*gone, slow):
            task.cancel()
        await client.wait_idle()
        assert await client.gauge("generation_tokens_total") < 100

    with_server(scenario, max_num_batched_tokens=2, max_num_seqs=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engine_dies_everyone_hears_of_it(with_server, capsys):
    async def scenario(client):
        ring, _ = rings(20, 30)
        whole = asyncio.create_task(client.post(exact(ring, 400)))
        streamed = asyncio.create_task(client.session.post(
            client.url + "/v1/completions", data=orjson.dumps(exact(ring, 400, stream=True))))
        while await client.gauge("num_requests_running") < 2:
            await asyncio.sleep(0.005)

        def fail(*_):
            raise RuntimeError("out of luck")

        client.runtime.engine.runner.run = fail
        status, answer = await whole
        assert status == 503
        assert "RuntimeError: out of luck" in answer["error"]["message"]
        async with await streamed as response:
            body = await response.read()
        assert b'data: {"error":' in body
        assert body.endswith(b"data: [DONE]\n\n")
        assert (await client.post(exact(ring, 4)))[0] == 503
        for path in ("/health", "/metrics"):
            async with client.session.get(client.url + path) as response:
                assert response.status == 503

    with_server(scenario)
    assert "out of luck" in capsys.readouterr().err
