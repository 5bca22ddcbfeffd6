"""The engine over HTTP: shapes and errors."""

from __future__ import annotations

import asyncio
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from pabench.probe import check_answer, draw_fork
from reference_engine.serving.server import parsed
from tests.reference_engine.helpers import SPEC, assert_exact, rings
from tests.reference_engine.http import exact


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
        await client.post(b"", "/reset_prefix_cache")
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


BAD = [  # body, what the message says, the parameter that is named
    (b"{", "no valid JSON", None),
    (b"[1]", "expected an object", None),
    (b"", "no valid JSON", None),
    ({}, "prompt", "prompt"),
    ({"prompt": 5}, "prompt", "prompt"),
    ({"prompt": ["a", 5]}, "prompt", "prompt"),
    ({"prompt": []}, "prompt is empty", "prompt"),
    ({"prompt": [[]]}, "no tokens", "prompt"),
    ({"prompt": [4096]}, "token id 4096", "prompt"),
    ({"prompt": [4096], "echo": True}, "token id 4096", "prompt"),
    ({"prompt": [-1]}, "token id -1", "prompt"),
    ({"prompt": [1], "max_tokens": -1}, "max_tokens", "max_tokens"),
    ({"prompt": [1], "max_tokens": 0}, "max_tokens is 0", "max_tokens"),
    ({"prompt": [1], "max_tokens": "5"}, "max_tokens", "max_tokens"),
    ({"prompt": [1], "max_tokens": 512}, "maximum context length is 512", "prompt"),
    ({"prompt": [1] * 600}, "maximum context length", "prompt"),
    ({"prompt": [1], "temperature": -1}, "temperature", "temperature"),
    (b'{"prompt": [1], "temperature": 1e999}', "no valid JSON", None),
    ({"prompt": [1], "top_p": 0}, "top_p", "top_p"),
    ({"prompt": [1], "top_k": -2}, "top_k", "top_k"),
    ({"prompt": [1], "min_p": 1.5}, "min_p", "min_p"),
    ({"prompt": [1], "n": 0}, "n", "n"),
    ({"prompt": [1], "n": True}, "n", "n"),
    ({"prompt": [1], "n": 65}, "at most 64", "n"),
    ({"prompt": [1], "n": 2, "best_of": 1}, "below n", "best_of"),
    ({"prompt": [1], "best_of": 65}, "at most 64", "best_of"),
    ({"prompt": [1], "best_of": 2, "stream": True}, "cannot be streamed", "best_of"),
    ({"prompt": [1], "stop": [""]}, "empty", "stop"),
    ({"prompt": [1], "stop_token_ids": [-1]}, "stop_token_ids", "stop_token_ids"),
    ({"prompt": [1], "logprobs": 21}, "logprobs", "logprobs"),
    ({"prompt": [1], "prompt_logprobs": 21}, "prompt_logprobs", "prompt_logprobs"),
    ({"prompt": [1], "prompt_logprobs": -1}, "prompt_logprobs", "prompt_logprobs"),
    ({"prompt": [1], "prompt_logprobs": 1, "stream": True}, "cannot be streamed", "prompt_logprobs"),
    ({"prompt": [1], "min_tokens": 17}, "min_tokens", "min_tokens"),
    ({"prompt": [1], "min_tokens": 2, "allowed_token_ids": [5], "stop_token_ids": [5]}, "ends the text", "min_tokens"),
    ({"prompt": [1], "stream": "yes"}, "stream", "stream"),
    ({"prompt": [1], "stream_options": {"include_usage": True}}, "stream is not true", "stream_options"),
    ({"prompt": [1], "presence_penalty": 2.5}, "presence_penalty", "presence_penalty"),
    ({"prompt": [1], "frequency_penalty": "1"}, "frequency_penalty", "frequency_penalty"),
    ({"prompt": [1], "repetition_penalty": 0}, "repetition_penalty", "repetition_penalty"),
    ({"prompt": [1], "logit_bias": {"a": 1}}, "no token id", "logit_bias"),
    ({"prompt": [1], "logit_bias": {"5": 101}}, "logit_bias", "logit_bias"),
    ({"prompt": [1], "logit_bias": {"99999": 1}}, "token id 99999", "logit_bias"),
    ({"prompt": [1], "allowed_token_ids": []}, "allowed_token_ids", "allowed_token_ids"),
    ({"prompt": [1], "allowed_token_ids": [99999]}, "token id 99999", "allowed_token_ids"),
    ({"prompt": [1], "bad_words": ["x"]}, "not supported", "bad_words"),
    ({"prompt": [1], "suffix": "x"}, "not supported", "suffix"),
    ({"prompt": [1], "priority": 1}, "--scheduling-policy priority", "priority"),
    ({"prompt": [1], "priority": 0.5}, "priority", "priority"),
    ({"prompt": [1], "cache_salt": ""}, "cache_salt", "cache_salt"),
    ({"prompt": [1], "request_id": 7}, "request_id", "request_id"),
    ({"prompt": [1], "request_id": "a\nb"}, "no printable text", "request_id"),
    ({"prompt": [1], "use_beam_search": True}, "one beam", "beam_width"),
    ({"prompt": [1], "use_beam_search": True, "beam_width": 9}, "beam_width", "beam_width"),
    ({"prompt": [1], "use_beam_search": True, "n": 3, "beam_width": 2}, "beam_width", "n"),
    ({"prompt": [1], "use_beam_search": True, "n": 2, "stream": True}, "beam search", "stream"),
    ({"prompt": [1], "use_beam_search": True, "n": 2, "stop": "x"}, "beam search", "stop"),
    ({"prompt": [1], "use_beam_search": True, "n": 2, "temperature": 0.7}, "beam search", "temperature"),
    ({"prompt": [1], "use_beam_search": True, "n": 2, "best_of": 4}, "beam search", "best_of"),
    ({"prompt": [1], "use_beam_search": True, "n": 2, "presence_penalty": 1}, "beam search", "presence_penalty"),
    ({"prompt": [1], "use_beam_search": True, "n": 2, "length_penalty": 11}, "length_penalty", "length_penalty"),
    ({"prompt": [1], "beam_width": 2}, "set use_beam_search", "beam_width"),
    ({"prompt": [1], "length_penalty": 2}, "set use_beam_search", "length_penalty"),
    ({"prompt": [1], "early_stopping": True}, "set use_beam_search", "early_stopping"),
]


def test_bad_input_is_named_and_leaves_the_server_healthy(with_server):
    async def scenario(client):
        for body, message, param in BAD:
            status, answer = await client.post(body)
            assert status == 400, body
            error = answer["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["code"], error["param"]) == (400, param), error
            assert message in error["message"], error
        status, answer = await client.post({"prompt": [1], "model": "gpt-9"})
        assert (status, answer["error"]["param"], answer["error"]["type"]) == (404, "model", "NotFoundError")
        for body in ({"messages": []}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {}):
            status, answer = await client.post(body, "/v1/chat/completions")
            assert (status, answer["error"]["param"]) == (400, "messages")
        for extra, param in (({"echo": True}, "echo"), ({"max_tokens": 0}, "max_tokens"), ({"logprobs": 1}, "logprobs"),
                             ({"top_logprobs": 1}, "top_logprobs"), ({"tools": [{}]}, "tools")):
            body = {"messages": [{"role": "user", "content": "t16 t300"}], **extra}
            status, answer = await client.post(body, "/v1/chat/completions")
            assert (status, answer["error"]["param"]) == (400, param)
        status, answer = await client.post({"prompt": [1]}, headers={"Content-Encoding": "gzip"})
        assert (status, "Content-Encoding is 'gzip'" in answer["error"]["message"]) == (400, True)
        for path, expected in (("/v1/nothing", 404), ("/v1/models", 405)):
            status, answer = await client.post({}, path)
            assert (status, answer["error"]["code"]) == (expected, expected)
        (ring,) = rings(15)
        status, whole = await client.post(exact(ring, 5, presence_penalty=0, best_of=None, n=None, unknown_field=1))
        assert (status, whole["choices"][0]["token_ids"]) == (200, ring.expected(5))
        await client.wait_idle()

    with_server(scenario)


def test_a_long_body_is_parsed_beside_the_event_loop():
    async def scenario(size):
        went_on = threading.Event()

        async def read():
            asyncio.get_running_loop().call_soon(went_on.set)
            return b"x" * size

        return await parsed(SimpleNamespace(read=read), lambda raw: went_on.wait(0.2))

    assert asyncio.run(scenario(1 << 20))
    assert not asyncio.run(scenario(100))


def test_two_requests_under_one_id_both_work(with_server):
    async def scenario(client):
        a, b = rings(15, 20)
        answers = await asyncio.gather(*(client.post(exact(r, 40, request_id="same")) for r in (a, b)))
        for ring, (status, whole) in zip((a, b), answers, strict=True):
            assert (status, whole["id"]) == (200, "cmpl-same")
            assert_exact(ring, whole["choices"][0]["token_ids"], 40)
        _, whole = await client.post(exact(a, 2), headers={"X-Request-Id": "mine"})
        assert whole["id"] == "cmpl-mine"
        status, refused = await client.post(exact(a, 2), headers={"X-Request-Id": "mi\u200bne"})
        assert (status, "no printable text" in refused["error"]["message"]) == (400, True)

    with_server(scenario)


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
