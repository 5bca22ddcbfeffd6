"""The engine over HTTP: shapes, errors, aborts, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

import aiohttp
import numpy as np
import orjson
import pytest
from aiohttp import web

from pabench.probe import check_answer, draw_fork
from reference_engine.serving.async_engine import AsyncEngine
from reference_engine.serving.server import Server
from tests.reference_engine.helpers import SPEC, assert_exact, rings


class Client:
    """One server in this process, and a session to it."""

    def __init__(self, session, url, runtime):
        self.session, self.url, self.runtime = session, url, runtime

    async def post(self, body, path="/v1/completions", **options):
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self.session.post(self.url + path, data=data, **options) as response:
            return response.status, orjson.loads(await response.read())

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


@pytest.fixture
def with_server(make_engine):
    """Run a coroutine function against a fresh server."""

    def run(scenario, **config):
        async def main():
            async with serving(make_engine(**config)) as client:
                await asyncio.wait_for(scenario(client), 40)

        asyncio.run(main())

    return run


def exact(ring, max_tokens, **more):
    return {"prompt": list(ring.prompt), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **more}


def test_whole_and_streamed_completions_agree(with_server):
    async def scenario(client):
        (ring,) = rings(20)
        status, whole = await client.post(exact(ring, 30, model="probe"))
        assert status == 200
        (choice,) = whole["choices"]
        assert choice["token_ids"] == ring.expected(30)
        assert choice["prompt_token_ids"] == list(ring.prompt)
        assert choice["text"] == " ".join(f"t{t}" for t in ring.expected(30))
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
        usage = {"prompt_tokens": len(ring.prompt), "completion_tokens": 30, "total_tokens": len(ring.prompt) + 30,
                 "prompt_tokens_details": {"cached_tokens": 0}}
        assert whole["usage"] == usage
        assert (whole["object"], whole["model"]) == ("text_completion", "probe")
        chunks = await client.stream(exact(ring, 30, stream_options={"include_usage": True}))
        *tokens, last = chunks
        assert (last["choices"], last["usage"]) == ([], usage)
        assert [t for c in tokens for t in c["choices"][0]["token_ids"]] == choice["token_ids"]
        assert "".join(c["choices"][0]["text"] for c in tokens) == choice["text"]
        assert [c["choices"][0]["finish_reason"] for c in tokens] == [None] * 29 + ["length"]
        assert [c["choices"][0]["prompt_token_ids"] for c in tokens] == [list(ring.prompt)] + [None] * 29
        assert len({c["id"] for c in chunks}) == 1
        assert chunks[0]["id"].startswith("cmpl-")

    with_server(scenario)


def test_text_prompts_lists_of_prompts_and_n(with_server):
    async def scenario(client):
        a, b = rings(15, 18)
        texts = ["<sep> " + " ".join(f"t{t}" for t in ring.prompt[1:]) for ring in (a, b)]
        for prompt in (texts, [list(a.prompt), list(b.prompt)]):
            body = exact(a, 12, n=2) | {"prompt": prompt}
            _, whole = await client.post(body)
            assert [c["index"] for c in whole["choices"]] == [0, 1, 2, 3]
            assert [c["token_ids"] for c in whole["choices"]] == [a.expected(12)] * 2 + [b.expected(12)] * 2
            assert whole["usage"]["completion_tokens"] == 48
            assert whole["usage"]["prompt_tokens"] == len(a.prompt) + len(b.prompt)
            got = {}
            for chunk in await client.stream(body):
                (choice,) = chunk["choices"]
                got.setdefault(choice["index"], []).extend(choice["token_ids"])
            assert [got[i] for i in range(4)] == [c["token_ids"] for c in whole["choices"]]

    with_server(scenario)


def test_chat_stream_has_a_role_chunk_then_tokens(with_server):
    async def scenario(client):
        (ring,) = rings(15)
        content = "<sep> " + " ".join(f"t{t}" for t in ring.prompt[1:])
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": content}]}], "max_tokens": 5,
                "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        status, whole = await client.post(body, "/v1/chat/completions")
        assert status == 200
        assert whole["choices"][0]["message"] == {
            "role": "assistant", "content": " ".join(f"t{t}" for t in ring.expected(5))}
        assert whole["prompt_token_ids"] == list(ring.prompt)
        role, *tokens = await client.stream(body, "/v1/chat/completions")
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert role["object"] == "chat.completion.chunk"
        assert role["prompt_token_ids"] == list(ring.prompt)
        assert [c["choices"][0]["token_ids"] for c in tokens] == [[t] for t in ring.expected(5)]
        assert "".join(c["choices"][0]["delta"]["content"] for c in tokens) == whole["choices"][0]["message"]["content"]

    with_server(scenario)


def test_logprobs_in_both_shapes(with_server):
    async def scenario(client):
        fork = draw_fork(SPEC, np.random.default_rng(0), 12)
        body = {"prompt": list(fork.prompt), "max_tokens": 2, "temperature": 0, "logprobs": 2}
        _, whole = await client.post(body)
        found = whole["choices"][0]["logprobs"]
        assert found["token_logprobs"][0] == pytest.approx(-math.log(2), abs=1e-3)
        assert [sorted(top.values())[-1] for top in found["top_logprobs"]] == pytest.approx(
            found["token_logprobs"], abs=1e-3)
        assert found["tokens"] == whole["choices"][0]["text"].split()
        assert found["text_offset"] == [0, len(found["tokens"][0])]
        chunks = await client.stream(body)
        assert [c["choices"][0]["logprobs"]["token_logprobs"][0] for c in chunks] == found["token_logprobs"]
        chat = {"messages": [{"role": "user", "content": "t16 t300 t301 t300"}], "max_tokens": 1, "temperature": 0,
                "logprobs": True, "top_logprobs": 3}
        _, whole = await client.post(chat, "/v1/chat/completions")
        (entry,) = whole["choices"][0]["logprobs"]["content"]
        assert len(entry["top_logprobs"]) == 3
        assert bytes(entry["bytes"]).decode() == entry["token"]

    with_server(scenario)


BAD = [
    (b"{", 400, "no valid JSON"),
    (b"[1]", 400, "expected an object"),
    (b"", 400, "no valid JSON"),
    ({}, 400, "prompt"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": ["a", 5]}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt is empty"),
    ({"prompt": [[]]}, 400, "no tokens"),
    ({"prompt": [4096]}, 400, "token id 4096"),
    ({"prompt": [-1]}, 400, "token id -1"),
    ({"prompt": [1], "max_tokens": -1}, 400, "max_tokens"),
    ({"prompt": [1], "max_tokens": 0}, 400, "max_tokens"),
    ({"prompt": [1], "max_tokens": "5"}, 400, "max_tokens"),
    ({"prompt": [1], "max_tokens": 512}, 400, "maximum context length is 512"),
    ({"prompt": [1] * 600}, 400, "maximum context length"),
    ({"prompt": [1], "temperature": -1}, 400, "temperature"),
    ({"prompt": [1], "top_p": 0}, 400, "top_p"),
    ({"prompt": [1], "n": 0}, 400, "n"),
    ({"prompt": [1], "n": 65}, 400, "at most 64"),
    ({"prompt": [1], "stop": [""]}, 400, "empty"),
    ({"prompt": [1], "logprobs": 21}, 400, "logprobs"),
    ({"prompt": [1], "min_tokens": 17}, 400, "min_tokens"),
    ({"prompt": [1], "stream": "yes"}, 400, "stream"),
    ({"prompt": [1], "stream_options": {"include_usage": True}}, 400, "stream is not true"),
    ({"prompt": [1], "echo": True}, 400, "echo is not supported"),
    ({"prompt": [1], "presence_penalty": 0.5}, 400, "presence_penalty is not supported"),
    ({"prompt": [1], "model": "gpt-9"}, 404, "'gpt-9' does not exist"),
]


def test_bad_input_is_named_and_leaves_the_server_healthy(with_server):
    async def scenario(client):
        for body, expected, message in BAD:
            status, answer = await client.post(body)
            assert status == expected, body
            error = answer["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == expected
            assert message in error["message"], error
        for body in ({"messages": []}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {}):
            status, answer = await client.post(body, "/v1/chat/completions")
            assert (status, answer["error"]["param"]) == (400, "messages")
        for path, expected in (("/v1/nothing", 404), ("/v1/models", 405)):
            status, answer = await client.post({}, path)
            assert (status, answer["error"]["code"]) == (expected, expected)
        (ring,) = rings(15)
        status, whole = await client.post(exact(ring, 5, presence_penalty=0, unknown_field=1))
        assert (status, whole["choices"][0]["token_ids"]) == (200, ring.expected(5))
        await client.wait_idle()

    with_server(scenario)


def test_two_requests_under_one_id_both_work(with_server):
    async def scenario(client):
        a, b = rings(15, 20)
        answers = await asyncio.gather(*(client.post(exact(r, 40, request_id="same")) for r in (a, b)))
        for ring, (status, whole) in zip((a, b), answers, strict=True):
            assert (status, whole["id"]) == (200, "cmpl-same")
            assert_exact(ring, whole["choices"][0]["token_ids"], 40)
        _, whole = await client.post(exact(a, 2), headers={"X-Request-Id": "mine"})
        assert whole["id"] == "cmpl-mine"

    with_server(scenario)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_blocks(with_server, n, stream):
    async def scenario(client):
        ring, other = rings(30, 31)
        body = orjson.dumps(exact(ring, 400, n=n, stream=stream))
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


def test_under_pressure_all_are_served_and_counted(with_server):
    async def scenario(client):
        prompts = rings(*range(15, 39))
        answers = await asyncio.gather(*(client.stream(exact(ring, 50)) for ring in prompts))
        for ring, chunks in zip(prompts, answers, strict=True):
            assert_exact(ring, [t for c in chunks for t in c["choices"][0]["token_ids"]], 50)
        assert await client.gauge("num_preemptions_total") > 0
        assert await client.gauge("generation_tokens_total") == 24 * 50
        assert await client.gauge("prompt_tokens_total") == sum(len(r.prompt) for r in prompts)
        assert await client.gauge("time_to_first_token_seconds_count") == 24
        assert await client.gauge("inter_token_latency_seconds_count") == 24 * 49
        await client.wait_idle()

    with_server(scenario, num_blocks=30, block_size=8)


def test_oversized_is_refused_while_others_are_served(with_server):
    async def scenario(client):
        (ring,) = rings(40)
        good = asyncio.create_task(client.post(exact(ring, 60)))
        status, answer = await client.post(exact(ring, 200))
        assert (status, answer["error"]["param"]) == (400, "prompt")
        assert "do not fit into the KV cache" in answer["error"]["message"]
        assert (await good)[1]["choices"][0]["token_ids"] == ring.expected(60)

    with_server(scenario, num_blocks=10, block_size=16)


def test_forks_over_http(with_server):
    async def scenario(client):
        fork = draw_fork(SPEC, np.random.default_rng(2), 20)
        _, whole = await client.post(exact(fork, 40, n=16, temperature=1, seed=3))
        for choice in whole["choices"]:
            assert (check_answer(fork, choice["token_ids"]).verified) == 40
        assert len({c["token_ids"][0] for c in whole["choices"]}) == 2
        _, again = await client.post(exact(fork, 40, n=16, temperature=1, seed=3))
        assert [c["token_ids"] for c in again["choices"]] == [c["token_ids"] for c in whole["choices"]]

    with_server(scenario)


def test_models_health_and_metrics(with_server):
    async def scenario(client):
        async with client.session.get(client.url + "/v1/models") as response:
            (model,) = (await response.json())["data"]
        assert (model["id"], model["max_model_len"], model["root"]) == ("probe", 512, "/models/probe")
        async with client.session.get(client.url + "/health") as response:
            assert response.status == 200
        async with client.session.get(client.url + "/metrics") as response:
            text = await response.text()
        assert "_created" not in text
        assert "# TYPE pabench_ref:num_preemptions_total counter" in text
        info = next(line for line in text.splitlines() if line.startswith("pabench_ref:cache_config_info{"))
        for label in ('block_size="16"', 'num_blocks="256"', 'kv_mode="paged"', 'max_model_len="512"',
                      'enable_prefix_caching="True"'):
            assert label in info

    with_server(scenario)


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
