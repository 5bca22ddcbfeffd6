"""Engines that do not run here, as stand-ins that answer as they do: recognised, asked, their streams read."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from pabench.engines import EngineClient, dialect, examine
from pabench.engines.base import GenerationRequest
from pabench.probe import Codec, Ring
from tests.engines.pages import LMDEPLOY_PAGE, MISTRALRS_PAGE, OVMS_PAGE, SGLANG_PAGE, TGI_PAGE, TRTLLM_PAGE
from tests.engines.standin import examined_routes, models, run, serving

IDS = [12366, 13]
USAGE = {"prompt_tokens": 5, "total_tokens": 7, "completion_tokens": 2}


def chunk(text: str | None, finish: object = None, **more: object) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish, **more}]
    return b"data: " + json.dumps({"object": "text_completion", "model": "m", "choices": choices}).encode() + b"\n\n"


def usage_chunk(**more: object) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": {**USAGE, **more}}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
LAST_WITH_USAGE = b"data: " + json.dumps(
    {"choices": [{"index": 0, "text": " t13", "finish_reason": "length"}], "usage": USAGE}).encode() + b"\n\n"

# name -> (owner, where its metrics are, the page, its stream, usage told, cached tokens told)
ENGINES = {
    "sglang": ("sglang", "/metrics", SGLANG_PAGE, [
        chunk(" t12366", token_ids=[12366]), chunk(" t13", "length", token_ids=[13]),
        usage_chunk(prompt_tokens_details={"cached_tokens": 4}), DONE], True, 4),
    # A space stands before the blank line of some chunks.
    "tensorrt-llm": ("tensorrt_llm", "/prometheus/metrics", TRTLLM_PAGE, [
        chunk(" t12366").replace(b"\n\n", b" \n\n"), chunk(" t13", "length"),
        usage_chunk(prompt_tokens_details={"cached_tokens": 0}), DONE], True, 0),
    "lmdeploy": ("lmdeploy", "/metrics", LMDEPLOY_PAGE, [
        chunk(" t12366"), chunk(" t13", "length"), usage_chunk(), DONE], True, None),
    # finish_reason is an empty text until the last chunk, which carries the last token and the usage.
    "tgi": ("x", "/metrics", TGI_PAGE, [b": keep-alive\n\n", chunk(" t12366", ""), LAST_WITH_USAGE, DONE], True, None),
    # A handshake comes before the first token.
    "openvino": ("x", "/metrics", OVMS_PAGE, [
        chunk(""), chunk(" t12366"), chunk(" t13", "length"), usage_chunk(), DONE], True, None),
    "mistralrs": ("x", "/metrics", MISTRALRS_PAGE, [
        chunk(" t12366"), b": ping\n\n", chunk(" t13", "length"), DONE], False, None),
}


def server(name: str, stream: list[bytes], taken: list[str] | None = None) -> dict[str, object]:
    """Routes of the stand-in. `taken` gets what is read of a page that each reading takes from others."""
    owner, metrics_path, page, *_ = ENGINES[name]

    async def completions(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body["stream"]:
            return web.json_response({"choices": [{"index": 0, "text": " t12366 t13", "finish_reason": "length"}],
                                      "usage": USAGE})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in stream:
            await response.write(piece)
        return response

    routes = {"GET /v1/models": {"object": "list", "data": [{"id": "m", "owned_by": owner, "max_model_len": 4096}]},
              f"GET {metrics_path}": (200, page), "POST /v1/completions": completions, "GET /health": (200, "")}
    if metrics_path != "/metrics":
        async def drained(request: web.Request) -> web.Response:
            if taken is not None:
                taken.append(request.path)
            return web.json_response([])

        routes["GET /metrics"] = drained
    return routes


def test_tgi_is_recognised_before_its_first_request() -> None:
    """Its page of metrics is empty then: no series is there before it is first written to."""
    routes = server("tgi", ENGINES["tgi"][3]) | {"GET /metrics": (200, ""), "GET /v1/models": models(
        id="org/model", created=0, owned_by="org/model")}
    assert examined_routes(routes).facts.dialect == "tgi"
    routes["GET /v1/models"] = models(id="org/model", created=1764550000, owned_by="org/model")
    assert examined_routes(routes).facts.dialect == "openai"


@pytest.mark.parametrize("name", ENGINES)
def test_it_is_recognised_and_its_stream_is_read(name: str) -> None:
    *_, stream, told, cached = ENGINES[name]

    taken: list[str] = []

    async def ask() -> None:
        async with serving(server(name, stream, taken)) as url:
            found = await examine(url, timeout_s=5.0)
            assert found.facts.dialect == name
            assert found.facts.max_context_tokens == 4096
            assert not any("status 500" in note for note in found.notes)
            facts = found.facts.kv
            assert (facts.capacity_tokens if facts else None) == {"sglang": 16384, "tensorrt-llm": 16384}.get(name)
            assert "running_metrics" in found.facts.capabilities or name == "openvino"
            async with EngineClient(url, dialect(name), "m", read_text=Codec.decode) as client:
                prompt = Ring(tuple(range(2048, 2060)), 16).prompt
                request = GenerationRequest(prompt if name == "sglang" else "t300 t301", 2)
                answer = await client.generate(request)
                assert answer.error is None
                (choice,) = answer.choices
                assert (choice.token_ids, choice.finish_reason, answer.finish_events) == (IDS, "length", 1)
                assert len(choice.token_times_s) == 2
                assert (answer.usage is not None) == told
                if told:
                    assert answer.usage is not None
                    assert (answer.usage.completion_tokens, answer.usage.cached_tokens) == (2, cached)
                metrics = await client.metrics()
                assert metrics is not None
                assert dialect(name).kv_sample(metrics, 0.0).running in (1, 2)

    run(ask())
    assert taken == []


@pytest.mark.parametrize(("name", "broken", "error"), [
    ("sglang", [chunk(" t12366"), b'data: {"error": {"message": "no memory", "code": 500}}\n\n', DONE], "no memory"),
    ("tgi", [chunk(" t12366", ""), b'data: {"error": "overloaded", "error_type": "overloaded"}\n\n'], "overloaded"),
    ("lmdeploy", [chunk(" t12366"), b'data: {"error": "stopped"}\n\n', DONE], "stopped"),
    ("tensorrt-llm", [chunk(" t12366")], None),  # it just ends
])
def test_a_stream_that_breaks_keeps_what_came(name: str, broken: list[bytes], error: str | None) -> None:
    async def ask() -> None:
        async with (
            serving(server(name, broken)) as url,
            EngineClient(url, dialect(name), "m", read_text=Codec.decode) as client,
        ):
            answer = await client.generate(GenerationRequest("t300 t301", 2))
            assert answer.truncated or answer.error
            assert (answer.error is None) if error is None else (error in (answer.error or ""))
            assert answer.choices[0].token_ids == [12366]

    run(ask())
