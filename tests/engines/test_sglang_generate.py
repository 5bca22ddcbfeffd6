"""SGLang's `/generate`: cumulative events, against a stand-in that behaves as the real one does."""

from __future__ import annotations

import pytest
from aiohttp import web

from pabench.engines import dialect
from pabench.engines.base import GenerationRequest, Usage
from pabench.engines.client import EngineClient
from pabench.errors import EngineProtocol, UsageError
from tests.engines.standin import event, run, serving, streaming

SPEECH = dialect("sglang-generate")
ASKED = GenerationRequest(prompt=(16, 17, 18), max_tokens=3, n=2, seed=5, request_id="r1", logprobs=True)


def meta(done, finish=None, cached=0, **more):
    return {"id": "a1", "finish_reason": finish and {"type": finish, "length": done}, "prompt_tokens": 3,
            "completion_tokens": done, "cached_tokens": cached, "e2e_latency": 0.1, **more}


def said(ids, index=0, finish=None, new=None, **more):
    """One event: all ids so far, or `new` ones alone."""
    return event({"text": " ".join(f"t{token}" for token in (ids if new is None else new)), "index": index,
                  "output_ids": ids if new is None else new, "meta_info": meta(len(ids), finish, **more)})


def read(*events, status=200):
    return SPEECH.parse_stream(status, list(enumerate(events, 1)))


def test_events_hold_all_so_far_and_only_what_is_new_has_come():
    answer = read(said([20]), said([30], 1), said([20, 21, 22], finish="length"), said([30, 31], 1),
                  said([30, 31, 32], 1, finish="length", cached=16), b"data: [DONE]\n\n")
    first, second = answer.choices
    assert (first.token_ids, first.token_times_s) == ([20, 21, 22], [1, 3, 3])
    assert (second.token_ids, second.token_times_s) == ([30, 31, 32], [2, 4, 5])
    assert (first.text, first.finish_reason, answer.truncated, answer.id) == ("t20 t21 t22", "length", False, "a1")
    assert answer.usage == Usage(3, 6, 0)
    assert answer.finish_events == 2


def test_a_server_that_sends_new_tokens_alone_is_understood_too():
    answer = read(said([20], new=[20]), said([20, 21, 22], new=[21, 22]),
                  said([20, 21, 22, 23], new=[23], finish="length"))
    (choice,) = answer.choices
    assert (choice.token_ids, choice.token_times_s) == ([20, 21, 22, 23], [1, 2, 2, 3])
    assert choice.text == "t20t21 t22t23"


@pytest.mark.parametrize(("events", "error", "truncated"), [
    ((said([20]), event({"error": {"message": "out of memory", "code": 500}})), "out of memory", True),
    ((said([20]), event(b"{broken")), "{broken", True),
    ((said([20]), b'data: {"text": "t20 t2'), None, True),
    ((said([20]),), None, True),
    ((said([20], finish="abort"),), None, False),
    ((event({"text": "no meta"}),), "expected an object with 'meta_info'", True),
    ((event({"text": "x", "output_ids": [1], "index": -1, "meta_info": {}}),), "whole number as index", True),
    ((event({"output_ids": "x", "meta_info": {}}),), "list of token ids", True),
])
def test_what_goes_wrong_in_a_stream_is_kept(events, error, truncated):
    answer = read(*events)
    assert answer.truncated is truncated
    assert (answer.error is None) if error is None else error in answer.error


def test_refusals_are_in_the_servers_words():
    answer = read(b'{"object": "error", "message": "max_new_tokens must be positive", "code": 400}', status=400)
    assert (answer.status, answer.error) == (400, "max_new_tokens must be positive")


def test_whole_answers_and_their_log_probabilities():
    told = {"output_token_logprobs": [[-0.1, 20, None], [-0.2, 21, None]],
            "output_top_logprobs": [[[-0.1, 20, None], [-3.0, 7, None]], [[-0.15, 9, None], [-0.2, 21, None]]],
            "input_token_logprobs": [[None, 16, None], [-0.5, 17, None], [-0.6, 18, None]]}
    one = {"text": "t20 t21", "output_ids": [20, 21], "meta_info": meta(2, "length", **told)}
    answer = SPEECH.parse(200, web.json_response([one, one]).body)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].logprobs == [-0.1, -0.2]
    assert answer.choices[1].runner_ups == [-3.0, -0.15]
    assert answer.choices[0].prompt_logprobs == [None, -0.5, -0.6]
    assert answer.usage == Usage(3, 4, 0)
    one["meta_info"]["output_token_logprobs"][1][0] = None
    with pytest.raises(EngineProtocol, match="one that is none"):
        SPEECH.parse(200, web.json_response(one).body)
    with pytest.raises(EngineProtocol, match="expected JSON"):
        SPEECH.parse(200, b"<html>")


def test_what_it_is_asked():
    path, body = SPEECH.build(ASKED, "m")
    assert (path, body["input_ids"], body["rid"], body["stream"]) == ("/generate", [16, 17, 18], "r1", True)
    assert body["sampling_params"] == {"max_new_tokens": 3, "temperature": 0.0, "ignore_eos": True, "n": 2,
                                       "top_p": 1.0, "top_k": -1, "sampling_seed": 5}
    assert (body["return_logprob"], body["top_logprobs_num"]) == (True, 2)
    assert "logprob_start_len" not in body
    for changes in ({"chat": True, "prompt": "x"}, {"cache_salt": "s"}, {"beam_width": 2}):
        with pytest.raises(UsageError, match="sglang-generate"):
            SPEECH.build(GenerationRequest(**({"prompt": (1,), "max_tokens": 1} | changes)), "m")


def test_over_http():
    async def go():
        pieces = [said([20]), said([20, 21], cached=2), said([20, 21, 22], finish="length", cached=2),
                  b"data: [DONE]\n\n"]
        async with (serving({"POST /generate": streaming(pieces, delay_s=0.02)}) as url,
                    EngineClient(url, SPEECH, "m") as client):
            return await client.generate(GenerationRequest(prompt=(16, 17), max_tokens=3))

    answer = run(go())
    (choice,) = answer.choices
    assert (choice.token_ids, answer.usage.cached_tokens) == ([20, 21, 22], 2)
    assert choice.token_times_s[2] - choice.token_times_s[0] > 0.03


@pytest.mark.parametrize("odd", [
    meta(2, output_token_logprobs=[[-1.0]], output_top_logprobs=[[[-1.0, 1, "a"]]]),
    meta(2, output_token_logprobs=[[-1.0, 1, "a"]], output_top_logprobs=[5]),
])
def test_what_came_before_an_event_that_cannot_be_read_is_kept(odd):
    answer = read(said([20]), event({"text": "t20 t21", "output_ids": [20, 21], "meta_info": odd}))
    assert answer.error
    assert answer.choices[0].token_ids[0] == 20
    assert answer.choices[0].token_times_s[0] == 1


def test_a_finish_reason_is_kept_to_a_hundred_characters():
    (choice,) = read(said([20], finish="z" * 10_000)).choices
    assert choice.finish_reason == "z" * 100
    (choice,) = read(event({"text": "a", "output_ids": [20], "meta_info": meta(1) | {"finish_reason": {}}})).choices
    assert choice.finish_reason is None
