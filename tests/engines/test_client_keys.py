"""A key goes into one header, and comes out of nothing that the client tells; nor is it carried elsewhere."""

import asyncio
import json

import pytest
from aiohttp import web

from pabench.engines import EngineClient, dialect
from pabench.engines.base import GenerationRequest
from pabench.errors import EngineProtocol
from tests.engines.standin import run, serving


def test_the_key_goes_into_the_authorization_header_only():
    seen = []

    async def main():
        async def handler(request):
            headers = {name.lower(): value for name, value in request.headers.items()}
            seen.append((headers, await request.text(), str(request.url)))
            return web.json_response({"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]})

        routes = {"POST /v1/completions": handler}
        async with serving(routes) as url, EngineClient(url, dialect("openai"), "m", api_key="s3cret") as client:
            await client.generate(GenerationRequest("x", 5, stream=False, request_id="r7"))

    run(main())
    ((headers, body, url),) = seen
    assert headers.pop("authorization") == "Bearer s3cret"
    assert "s3cret" not in f"{headers} {body} {url}"
    assert headers["x-request-id"] == "r7"


def test_an_error_that_quotes_the_key_is_read_without_it():
    async def main():
        async def handler(request):
            response = web.StreamResponse(status=429, headers={"Content-Type": "application/json"})
            await response.prepare(request)
            for part in (b'{"error": {"message": "limit of s3', b'cret reached"}}'):
                await response.write(part)
                await asyncio.sleep(0.05)
            return response

        routes = {"POST /v1/completions": handler}
        async with serving(routes) as url, EngineClient(url, dialect("openai"), "m", api_key="s3cret") as client:
            return (await client.generate(GenerationRequest("x", 5)), await client.post_raw("/v1/completions", b"{}"))

    answer, (status, body) = run(main())
    assert answer.error == "limit of *** reached"
    assert (status, body) == (429, b'{"error": {"message": "limit of ****** reached"}}')


KEY = "sk-very-secret-" + "0123456789" * 3


async def raw(answer, ask):
    """What `ask` makes of a client of a server that answers everything with these bytes."""
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with EngineClient(url, dialect("openai"), "m", api_key=KEY) as client:
            return await ask(client)


NO_HTTP = f"ERR unauthorized: Authorization: Bearer {KEY}\r\n\r\n"
ELSEWHERE = f"HTTP/1.1 307 Go\r\nLocation: http://[bad{KEY}/\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(("answer", "ask"), [
    (NO_HTTP, lambda client: client.get("/health")),
    (NO_HTTP, lambda client: client.generate(GenerationRequest("x", 5))),
    (ELSEWHERE, lambda client: client.get("/health")),
    (ELSEWHERE, lambda client: client.generate(GenerationRequest("x", 5))),
    (f"HTTP/1.1 200 OK\r\n\r\nwho is {KEY}?\n",
     lambda client: client.start_then_abort(GenerationRequest("x", 5), 1)),
])
def test_no_fault_is_told_with_the_key(answer, ask):
    with pytest.raises(EngineProtocol) as told:
        run(raw(answer.encode(), ask))
    assert KEY[:16] not in str(told.value)


def test_an_error_that_spells_the_key_in_escapes_is_read_without_it():
    body = json.dumps({"error": {"message": f"no such key: {KEY}"}}).replace("sk-", "sk\\u002d")
    answer = f"HTTP/1.1 401 No\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    assert run(raw(answer.encode(), lambda client: client.generate(GenerationRequest("x", 5)))).error == \
        "no such key: ***"


def test_a_redirect_of_what_is_asked_is_told_and_not_followed():
    answer = b"HTTP/1.1 307 Go\r\nLocation: http://other.example/v1\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(EngineProtocol, match=r"redirects to 'http://other\.example/v1'.*: give the URL of the engine"):
        run(raw(answer, lambda client: client.generate(GenerationRequest("x", 5))))
