"""The stub engine: exact words, known times, and its faults one by one."""

import asyncio
import json
import random
import sys
import time

import aiohttp
import numpy as np
import pytest

from pabench.engines import EngineClient, EngineProcess, dialect
from pabench.engines.base import GenerationRequest
from pabench.engines.sse import read_events
from pabench.errors import EngineDied, UsageError
from pabench.probe import PRESETS, check_answer, draw_rings
from pabench.stub import StubOptions, StubServer, main
from pabench.stub.request import continue_prompt

RING = draw_rings(PRESETS["tiny"], np.random.default_rng(0), [9])[0]
FAST = {"ttft_ms": 1.0, "itl_ms": 0.1}
URL = "http://127.0.0.1:{port}"
COMMAND = [sys.executable, "-m", "pabench.stub", "--port", "{port}", "--ttft-ms", "1", "--itl-ms", "1"]


def post(options, body, path="/v1/completions"):
    """Events of a stream, or the status and the answer."""
    sent = body if isinstance(body, bytes) else json.dumps(body)

    async def talk():
        async with (
            StubServer(options) as server,
            aiohttp.ClientSession() as session,
            session.post(server.url + path, data=sent) as answer,
        ):
            data = await answer.read()
            if answer.content_type != "text/event-stream":
                return answer.status, json.loads(data)
            events = [event.data for event in read_events([(0.0, data)])]
            return [event if event == b"[DONE]" else json.loads(event) for event in events]

    return asyncio.run(asyncio.wait_for(talk(), 20))


def request(**changes):
    return {"model": "stub", "prompt": list(RING.prompt), "max_tokens": 12, "stream": True,
            "return_token_ids": True, "stream_options": {"include_usage": True}} | changes


def said(events, index=0):
    return [token for event in events if event != b"[DONE]" for choice in event.get("choices", [])
            if choice["index"] == index for token in choice.get("token_ids", [])]


def test_a_stream_is_the_ring_with_usage_and_done():
    events = post(StubOptions(**FAST), request())
    assert said(events) == RING.expected(12)
    *chunks, usage, done = events
    assert [len(chunk["choices"][0]["token_ids"]) for chunk in chunks] == [1] * 12
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 11 + ["length"]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == list(RING.prompt)
    assert (usage["choices"], usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == ([], 12, 12)
    assert done == b"[DONE]"


def test_words_say_the_same_as_ids():
    events = post(StubOptions(**FAST), request())
    text = "".join(event["choices"][0]["text"] for event in events[:-2])
    assert text == " ".join(f"t{token}" for token in RING.expected(12))


def test_chunks_of_several_tokens():
    events = post(StubOptions(tokens_per_chunk=5, **FAST), request())
    assert [len(event["choices"][0]["token_ids"]) for event in events[:-2]] == [5, 5, 2]
    assert said(events) == RING.expected(12)


def test_chat_with_a_role_chunk_for_each_choice():
    words = " ".join(["<sep>", *(f"t{token}" for token in RING.prompt[1:])])
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 3, "stream": True, "n": 2}
    *chunks, done = post(StubOptions(role_chunk=True, **FAST), body, "/v1/chat/completions")
    assert done == b"[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [{"role": "assistant", "content": ""}] * 2
    choices = [chunk["choices"][0] for chunk in chunks]
    told = ["".join(c["delta"]["content"] for c in choices if c["index"] == i) for i in (0, 1)]
    assert told == [" ".join(f"t{token}" for token in RING.expected(3))] * 2
    status, whole = post(StubOptions(**FAST), body | {"stream": False}, "/v1/chat/completions")
    assert (status, [c["message"]["content"] for c in whole["choices"]]) == (200, told)


@pytest.mark.parametrize("tokens_per_chunk", [1, 4])
def test_chunks_are_never_early_and_lateness_does_not_add_up(tokens_per_chunk, monkeypatch):
    """Timers that are 8 ms late each would make a relative schedule 320 ms (80 ms) late; an absolute one 8 ms."""
    sleep = asyncio.sleep
    monkeypatch.setattr("pabench.stub.answer.asyncio.sleep", lambda delay_s: sleep(delay_s + 0.008))
    ttft_ms, itl_ms, num_tokens = 30.0, 10.0, 41
    start_ns = time.monotonic_ns()
    options = StubOptions(ttft_ms=ttft_ms, itl_ms=itl_ms, tokens_per_chunk=tokens_per_chunk)
    events = post(options, request(max_tokens=num_tokens))
    stamps_ms = [(event["pabench_sent_ns"] - start_ns) / 1e6 for event in events[:-2]]
    due_ms = [ttft_ms + i * tokens_per_chunk * itl_ms for i in range(len(stamps_ms))]
    assert len(stamps_ms) == -(-num_tokens // tokens_per_chunk)
    late_ms = [stamp - due for stamp, due in zip(stamps_ms, due_ms, strict=True)]
    assert min(late_ms) >= 0
    assert min(late_ms[-5:]) - late_ms[0] < 50


def test_the_end_comes_later_than_the_last_token():
    *_, last, usage, done = post(StubOptions(end_ms=60, **FAST), request())
    assert (usage["pabench_sent_ns"] - last["pabench_sent_ns"]) / 1e6 > 50
    assert done == b"[DONE]"


def test_a_whole_answer_comes_when_its_last_token_is_due():
    start_s = time.monotonic()
    status, answer = post(StubOptions(ttft_ms=20, itl_ms=5), request(stream=False, stream_options=None))
    assert time.monotonic() - start_s >= (20 + 11 * 5) / 1000
    assert (status, answer["choices"][0]["token_ids"]) == (200, RING.expected(12))


def test_wrong_tokens_are_found_by_the_oracle():
    ids = said(post(StubOptions(wrong_every=4, **FAST), request()))
    assert [i for i, (got, right) in enumerate(zip(ids, RING.expected(12), strict=True)) if got != right] == [3, 7, 11]
    assert check_answer(RING, ids).wrong > 0


def test_errors_come_at_the_given_rate():
    async def talk():
        options, vllm = StubOptions(error_rate=0.25, **FAST), dialect("vllm")
        async with StubServer(options) as server, EngineClient(server.url, vllm, "stub") as client:
            return [(await client.generate(GenerationRequest(RING.prompt, 1))).status for _ in range(8)]

    assert asyncio.run(talk()).count(500) == 2


def test_no_done_and_error_inside():
    assert b"[DONE]" not in post(StubOptions(no_done=True, **FAST), request())
    events = post(StubOptions(error_after=3, **FAST), request())
    assert len(said(events)) == 3
    assert "fails after 3" in events[-1]["error"]["message"]


def test_a_cut_connection():
    with pytest.raises(aiohttp.ClientPayloadError):
        post(StubOptions(cut_after=3, **FAST), request())


@pytest.mark.parametrize("body", [
    b"{", b"[]", request(prompt=[]), request(prompt=["a"]), request(prompt=[-1]), request(prompt=None),
    request(max_tokens=0), request(max_tokens="9"), request(n=0), request(temperature="hot"), request(max_tokens=65536),
])
def test_bad_requests_are_refused(body):
    status, answer = post(StubOptions(**FAST), body)
    assert status == 400
    assert answer["error"]["message"]


def test_a_prompt_that_is_none_of_the_probe_gets_some_answer():
    assert len(said(post(StubOptions(**FAST), request(prompt="Hello world")))) == 12


def test_without_an_earlier_occurrence_ids_count_up():
    tokens = continue_prompt((0, 16, 300), None)
    assert [next(tokens)[0] for _ in range(3)] == [272, 273, 274]


def test_an_answer_stays_on_the_branch_that_it_took():
    for seed in range(8):
        tokens = continue_prompt((0, 16, 300, 302, 300, 303, 300), random.Random(seed))
        said = [next(tokens) for _ in range(8)]
        assert said[2:] == [(said[0][0], 0.0), (300, 0.0)] * 3
        taken = (0, 16, 300, 302, 300, 303, 300, said[0][0], 300)  # by the last turn of a conversation
        assert next(continue_prompt(taken, random.Random(seed))) == (said[0][0], 0.0)


def test_a_seed_draws_the_same_branches():
    def branches(seed):
        events = post(StubOptions(**FAST), request(prompt=[0, 16, 300, 302, 300, 303, 300], temperature=1.0, seed=seed))
        return said(events)

    assert branches(1) == branches(1)
    assert len({tuple(branches(seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize("changes", [
    {"ttft_ms": -1}, {"ttft_ms": float("nan")}, {"itl_ms": float("inf")}, {"end_ms": -1}, {"tokens_per_chunk": 0},
    {"error_rate": 1.5}, {"status": 200}, {"port": 70000}, {"die_after": -1},
])
def test_bad_options_are_refused(changes):
    with pytest.raises(UsageError, match=f"stub option {next(iter(changes))}"):
        StubOptions(**changes)


def test_as_a_process_it_serves_and_dies_on_demand(tmp_path):
    command = [*COMMAND, "--die-after", "2"]
    with EngineProcess(command, url=URL, log=tmp_path / "log", ready_timeout_s=20) as engine:
        async def talk():
            async with EngineClient(engine.url, dialect("reference"), "stub") as client:
                for _ in range(2):
                    answer = await client.generate(GenerationRequest(RING.prompt, 5))
                    assert check_answer(RING, answer.choices[0].token_ids).verified == 5
                with pytest.raises(EngineDied):
                    await client.generate(GenerationRequest(RING.prompt, 5))

        asyncio.run(talk())
        deadline_s = time.monotonic() + 5
        while engine.alive and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert engine.returncode == 70


def test_a_port_in_use_is_one_line(tmp_path):
    with EngineProcess(COMMAND, url=URL, log=tmp_path / "log", ready_timeout_s=20) as engine:
        port = engine.url.rsplit(":", 1)[1]
        with pytest.raises(UsageError, match=rf"cannot listen at 127\.0\.0\.1:{port}: .*another port"):
            main(["--port", port])


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--no-such-option"])
    assert caught.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err
