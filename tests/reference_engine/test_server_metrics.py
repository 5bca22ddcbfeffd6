"""What the server tells of itself and of texts: models, version, health, metrics, tokens."""

from __future__ import annotations

import asyncio
import dataclasses

import orjson

from pabench import __version__
from reference_engine.config import EngineConfig
from tests.reference_engine.helpers import rings
from tests.reference_engine.http import exact


def test_models_health_and_metrics(with_server):
    async def scenario(client):
        async with client.session.get(client.url + "/v1/models") as response:
            (model,) = (await response.json())["data"]
        assert (model["id"], model["max_model_len"], model["root"]) == ("probe", 512, "/models/probe")
        async with client.session.get(client.url + "/version") as response:
            assert await response.json() == {"version": __version__}
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
        assert all(f" {f.name}=" in info.replace(",", " ").replace("{", " ") for f in dataclasses.fields(EngineConfig))

    with_server(scenario)


def test_histograms_and_ends_count_every_request(with_server):
    async def scenario(client):
        prompts = rings(20, 21, 22)
        await asyncio.gather(*(client.post(exact(ring, 10, n=n)) for ring, n in zip(prompts, (1, 2, 3), strict=True)))
        expected = prompts[0].expected(10)
        _, stopped = await client.post(exact(prompts[0], 10, stop_token_ids=[expected[4]]))
        assert (stopped["choices"][0]["finish_reason"], stopped["choices"][0]["stop_reason"]) == ("stop", expected[4])
        gone = await client.session.post(client.url + "/v1/completions", data=orjson.dumps(
            exact(prompts[1], 400, n=2, stream=True)))
        assert (await gone.content.readline()).startswith(b"data: ")
        gone.close()
        await client.wait_idle()
        async with client.session.get(client.url + "/metrics") as response:
            page = await response.text()
        for reason, count in (("length", 6), ("stop", 1), ("abort", 2)):
            assert f'pabench_ref:request_success_total{{finished_reason="{reason}"}} {count}.0' in page
        assert await client.gauge("time_to_first_token_seconds_count") == 5
        assert await client.gauge("e2e_request_latency_seconds_count") == 4
        assert await client.gauge("request_queue_time_seconds_count") == 5
        e2e, queue = [await client.gauge(f"{name}_sum") for name in (
            "e2e_request_latency_seconds", "request_queue_time_seconds")]
        assert 0 <= queue < e2e < 40

    with_server(scenario)


def test_the_split_adds_up_while_a_request_runs(with_server):
    async def scenario(client):
        (ring,) = rings(30)
        task = asyncio.create_task(client.post(exact(ring, 300)))
        while await client.gauge("num_requests_running") < 1:
            await asyncio.sleep(0.002)
        async with client.session.get(client.url + "/metrics") as response:
            lines = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
        parts = [float(lines[f"pabench_ref:kv_{part}_slots"]) for part in (
            "token_state", "reserved", "internal_waste", "free")]
        assert sum(parts) == 256 * 16
        assert parts[0] >= len(ring.prompt)
        await task

    with_server(scenario)


def test_speculation_tells_how_often_it_is_right(with_server):
    async def scenario(client):
        (ring,) = rings(20)
        _, whole = await client.post(exact(ring, 100))
        assert whole["choices"][0]["token_ids"] == ring.expected(100)
        drafts, accepted = [await client.gauge(f"spec_decode_num_{what}_tokens_total") for what in (
            "draft", "accepted")]
        assert 50 < accepted <= drafts

    with_server(scenario, speculation="ngram")


def test_tokens_of_texts_and_back(with_server):
    async def scenario(client):
        text = "<sep> t16 t300 t4000"
        status, found = await client.post({"prompt": text, "return_token_strs": True}, "/tokenize")
        assert (status, found) == (200, {
            "count": 4, "max_model_len": 512, "tokens": [0, 16, 300, 4000],
            "token_strs": ["<sep>", "t16", "t300", "t4000"]})
        assert await client.post({"tokens": found["tokens"]}, "/detokenize") == (200, {"prompt": text})
        chat = {"messages": [{"role": "user", "content": "t16 t300"}]}
        _, found = await client.post(chat, "/tokenize")
        _, whole = await client.post({**chat, "max_tokens": 1, "return_token_ids": True}, "/v1/chat/completions")
        assert found["tokens"] == whole["prompt_token_ids"]
        assert found["token_strs"] is None
        for path, body, param in (
            ("/tokenize", {}, "prompt"), ("/tokenize", {"prompt": "x", **chat}, "prompt"),
            ("/tokenize", {"prompt": 5}, "prompt"), ("/detokenize", {}, "tokens"),
            ("/detokenize", {"tokens": [4096]}, "tokens"), ("/detokenize", {"tokens": ["t1"]}, "tokens"),
        ):
            status, answer = await client.post(body, path)
            assert (status, answer["error"]["param"]) == (400, param)

    with_server(scenario)
