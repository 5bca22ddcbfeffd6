"""EngineClient: answers, and a name for each way in which an engine fails to give one."""

import asyncio
import json
import os
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiohttp import web

from pabench.engines import EngineClient, dialect
from pabench.engines.address import base_url
from pabench.engines.base import GenerationRequest
from pabench.errors import EngineDied, EngineProtocol, EngineTimeout, EngineUnreachable, UsageError
from pabench.probe import PRESETS, check_answer, draw_fork, draw_rings
from pabench.stub import StubOptions, StubServer
from tests.engines.standin import event, run, serving, streaming

RING = draw_rings(PRESETS["tiny"], np.random.default_rng(0), [20])[0]
FAST = {"ttft_ms": 2.0, "itl_ms": 0.2}


@asynccontextmanager
async def stub(**options):
    vllm = dialect("vllm")
    async with StubServer(StubOptions(**options)) as server, EngineClient(server.url, vllm, "stub") as client:
        yield client


def ask(options, request, name="vllm", **kwargs):
    async def main():
        async with StubServer(options) as server, EngineClient(server.url, dialect(name), "stub", **kwargs) as client:
            return await client.generate(request)

    return run(main())


@pytest.mark.parametrize("name", ["vllm", "reference", "openai"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_ring_comes_back_in_every_dialect(name, stream):
    answer = ask(StubOptions(**FAST), GenerationRequest(RING.prompt, 30, stream=stream), name)
    (choice,) = answer.choices
    check = check_answer(RING, choice.token_ids)
    assert (check.verified, check.wrong, len(choice.token_times_s)) == (30, 0, 30 if stream else 0)
    assert (answer.usage.completion_tokens, answer.truncated, answer.error) == (30, False, None)


def test_samples_of_a_fork_follow_their_branches():
    fork = draw_fork(PRESETS["tiny"], np.random.default_rng(1), 5)
    request = GenerationRequest(fork.prompt, 30, n=8, temperature=1.0, seed=5, logprobs=True)
    answer = ask(StubOptions(**FAST), request)
    assert all(check_answer(fork, choice.token_ids).verified == 30 for choice in answer.choices)
    assert {fork.branch(choice.token_ids) for choice in answer.choices} == {0, 1}
    assert answer.finish_events == 8
    assert abs(answer.choices[0].logprobs[0] - np.log(0.5)) < 1e-9


def test_refusals_are_answers():
    answer = ask(StubOptions(status=503), GenerationRequest(RING.prompt, 5))
    assert (answer.status, answer.choices) == (503, [])
    assert "refuses" in answer.error


def test_an_error_inside_the_stream_keeps_the_tokens_before():
    answer = ask(StubOptions(error_after=4, **FAST), GenerationRequest(RING.prompt, 30))
    assert len(answer.choices[0].token_times_s) == 4
    assert "fails after 4" in answer.error
    assert answer.truncated


@pytest.mark.parametrize("stream", [True, False])
def test_a_broken_connection_truncates(stream):
    async def main():
        cut = streaming([event({"choices": [{"index": 0, "text": "t300"}]})], cut=True)
        async with (
            serving({"POST /v1/completions": cut}) as url,
            EngineClient(url, dialect("openai"), "m") as client,
        ):
            return await client.generate(GenerationRequest("x", 5, stream=stream))

    answer = run(main())
    assert answer.truncated
    assert (answer.error is None) == stream


def test_nothing_there_is_unreachable():
    async def main():
        async with EngineClient("http://127.0.0.1:9", dialect("vllm"), "m") as client:
            assert not await client.healthy()
            await client.generate(GenerationRequest(RING.prompt, 5))

    with pytest.raises(EngineUnreachable, match="connection refused"):
        run(main())


def test_tls_where_there_is_none_is_named():
    async def main():
        async with (StubServer(StubOptions(**FAST)) as server,
                    EngineClient(server.url.replace("http:", "https:"), dialect("vllm"), "m") as client):
            await client.generate(GenerationRequest(RING.prompt, 5))

    with pytest.raises(EngineUnreachable, match=r"no TLS connection to https://.*(?i:ssl).*does it serve https"):
        run(main())


@pytest.mark.parametrize("choice", [
    {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [10**400], "top_logprobs": [None]}},
    {"text": "a", "logprobs": {"content": [{"token": "a", "logprob": -1.0,
                                            "top_logprobs": [{"token": ["u"], "logprob": -2.0}]}]}},
])
def test_an_answer_of_no_form_is_the_engines_fault(choice):
    async def main():
        async def answer(request):
            return web.Response(text=json.dumps({"choices": [{"index": 0, **choice}]}), content_type="application/json")

        async with serving({"POST /v1/completions": answer}) as url, EngineClient(url, dialect("vllm"), "m") as client:
            await client.generate(GenerationRequest("x", 5, stream=False, logprobs=True))

    with pytest.raises(EngineProtocol):
        run(main())


@pytest.mark.parametrize("abort", [True, False])
def test_an_answer_that_a_dialect_trips_over_is_the_engines_fault_too(abort, monkeypatch):
    def trip(*_):
        raise KeyError("what no dialect has thought of")

    async def main():
        async with stub(**FAST) as client:
            monkeypatch.setattr(type(client.dialect), "parse_stream", trip)
            request = GenerationRequest(RING.prompt, 20)
            await (client.start_then_abort(request, 1) if abort else client.generate(request))

    with pytest.raises(EngineProtocol, match=r"no form that dialect 'vllm' has \(KeyError"):
        run(main())


def test_an_engine_that_goes_away_has_died():
    async def main():
        async with stub(die_after=1, **FAST) as client:
            assert (await client.generate(GenerationRequest(RING.prompt, 5))).error is None
            with pytest.raises((EngineDied, EngineProtocol)):
                await client.generate(GenerationRequest(RING.prompt, 5))
            await asyncio.sleep(0.05)
            with pytest.raises(EngineDied):
                await client.generate(GenerationRequest(RING.prompt, 5))
            assert not await client.healthy()

    run(main())


def test_silence_is_a_timeout():
    with pytest.raises(EngineTimeout, match=r"within 0\.3 s, got \d+ bytes"):
        ask(StubOptions(stall_after=2, **FAST), GenerationRequest(RING.prompt, 30), timeout_s=0.3)


def test_what_is_no_http_is_named():
    async def main():
        async def shout(reader, writer):
            writer.write(b"SSH-2.0-hello\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(shout, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with EngineClient(url, dialect("openai"), "m") as client:
                assert not await client.healthy()
                await client.generate(GenerationRequest("x", 5))

    with pytest.raises(EngineProtocol, match="HTTP"):
        run(main())


@pytest.mark.parametrize("after", [0, 3])
def test_an_abort_disconnects(after):
    async def main():
        options = StubOptions(ttft_ms=200 if after == 0 else 5, itl_ms=5)
        async with StubServer(options) as server, EngineClient(server.url, dialect("vllm"), "stub") as client:
            answer = await client.start_then_abort(GenerationRequest(RING.prompt, 5000), after)
            for _ in range(100):
                if server.stub.running == 0:
                    break
                await asyncio.sleep(0.02)
            return answer, server.stub.running, server.stub.generations

    answer, running, generations = run(main())
    assert (running, generations, answer.truncated) == (0, 1, True)
    assert sum(len(choice.token_times_s) for choice in answer.choices) in range(after, after + 10)


def test_an_abort_that_comes_too_late_gives_the_whole_answer():
    async def main():
        async with stub(**FAST) as client:
            return await client.start_then_abort(GenerationRequest(RING.prompt, 4), 100)

    answer = run(main())
    assert (len(answer.choices[0].token_times_s), answer.truncated) == (4, False)


def test_raw_bytes_are_sent_as_they_are():
    async def main():
        async with StubServer() as server, EngineClient(server.url, dialect("vllm"), "stub") as client:
            return await client.post_raw("/v1/completions", b"{bad"), await client.healthy()

    (status, body), healthy = run(main())
    assert (status, healthy) == (400, True)
    assert b"no JSON" in body


@pytest.mark.parametrize(("name", "answers", "healthy"), [
    ("sglang", {"/ready": 200}, True),
    ("sglang", {"/ready": 503}, False),
    ("sglang", {"/v1/models": 200}, True),  # before it had /ready
    ("sglang-generate", {"/ready": 200}, True),
    ("triton", {"/v2/health/ready": 200}, True),
    ("openvino", {"/v2/health/ready": 503, "/v1/models": 200}, False),
])
def test_health_is_asked_where_no_token_is_generated(name, answers, healthy):
    """Behind SGLang's /health one is, and counters show it."""
    asked = []

    async def answer(request):
        asked.append(request.path)
        return web.Response(status=200 if request.path == "/health" else answers.get(request.path, 404))

    async def main():
        async with serving({"GET /{path:.*}": answer}) as url, EngineClient(url, dialect(name), "m") as client:
            return await client.healthy()

    assert run(main()) is healthy
    assert "/health" not in asked


@pytest.mark.parametrize(("routes", "healthy"), [
    ({"GET /health": (200, "")}, True),
    ({"GET /health": (503, "dead")}, False),
    ({"GET /v1/models": {"data": []}}, True),
    ({}, False),
])
def test_health(routes, healthy):
    async def main():
        async with serving(routes) as url, EngineClient(url, dialect("openai"), "m") as client:
            return await client.healthy()

    assert run(main()) is healthy


def test_metrics():
    async def main(name, routes):
        async with serving(routes) as url, EngineClient(url, dialect(name), "m") as client:
            return await client.metrics()

    page = (200, "vllm:num_requests_running 2\n")
    assert run(main("vllm", {"GET /metrics": page}))["vllm:num_requests_running"][0].value == 2
    assert run(main("vllm", {})) is None
    assert run(main("transformers", {"GET /metrics": page})) is None
    with pytest.raises(EngineProtocol, match="expected 200, got 500"):
        run(main("vllm", {"GET /metrics": (500, "")}))


@pytest.mark.parametrize(("given", "expected"), [
    ("http://h:8000", "http://h:8000"), ("http://h:8000/", "http://h:8000"), ("http://h:8000/v1/", "http://h:8000"),
    ("https://h/proxy/v1", "https://h/proxy"),
])
def test_urls(given, expected):
    assert base_url(given) == expected


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://", "http://user:pass@h:8000", "http://h:port",
                                 "http://h:8000/?api_key=s3cret"])
def test_bad_urls_are_refused_before_any_request(url):
    with pytest.raises(UsageError, match="URL") as refused:
        base_url(url)
    assert "s3cret" not in str(refused.value)


def test_a_refusal_does_not_tell_a_password():
    with pytest.raises(UsageError) as refused:
        base_url("user:s3cret@host:8000")
    assert "s3cret" not in str(refused.value)
    assert "'host:8000'" in str(refused.value)


def test_no_proxy_stands_between(monkeypatch):
    monkeypatch.setitem(os.environ, "HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(StubOptions(**FAST), GenerationRequest(RING.prompt, 3)).error is None
