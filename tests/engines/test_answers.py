"""Whole and streamed answers, written as the dialects' engines write them -> Completion."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.engines.answers import _ChoiceReading, parse_answer, parse_stream_answer
from pabench.errors import EngineProtocol
from pabench.probe import Codec


def sse(*events, done=True):
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events] + (["[DONE]"] if done else [])
    return [(float(i), f"data: {line}\n\n".encode()) for i, line in enumerate(lines)]


def text(words, index=0, finish=None, **more):
    return {"choices": [{"index": index, "text": words, "logprobs": None, "finish_reason": finish, **more}]}


def usage(prompt, completion, **more):
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"choices": [], "usage": counts | more}


def stream(*events, done=True, read_text=None, status=200):
    return parse_stream_answer(status, sse(*events, done=done), read_text)


def test_vllm_completion_stream():
    answer = stream(
        text(" Paris", stop_reason=None, prompt_token_ids=[1, 2], token_ids=[7]),
        text(".", finish="length", token_ids=[8]),
        usage(5, 2, prompt_tokens_details={"cached_tokens": 4}),
    )
    (choice,) = answer.choices
    assert (choice.text, choice.token_ids, choice.token_times_s) == (" Paris.", [7, 8], [0.0, 1.0])
    assert (choice.finish_reason, answer.finish_events, answer.truncated, answer.error) == ("length", 1, False, None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (5, 2, 4)


def test_role_only_and_empty_chunks_are_never_the_first_token():
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    null = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    word = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    (choice,) = stream(role, null, word, last).choices
    assert (choice.token_times_s, choice.text, choice.finish_reason) == ([2.0], "Hi", "stop")


def test_reasoning_counts_as_a_token():
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    assert stream(thought, last).choices[0].token_times_s == [0.0, 1.0]


def test_a_chunk_of_several_tokens_has_an_entry_each():
    answer = stream(text("a b c", token_ids=[1, 2, 3]), text(" d", finish="length", token_ids=[4]))
    assert answer.choices[0].token_times_s == [0.0, 0.0, 0.0, 1.0]


def test_a_chunk_without_text_may_hold_tokens():
    answer = stream(text("", token_ids=[1]), text("é", finish="length", token_ids=[2]))
    assert answer.choices[0].token_times_s == [0.0, 1.0]


def test_tokens_of_a_chunk_are_counted_from_logprobs_where_ids_are_missing():
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.25], "top_logprobs": None, "text_offset": []}
    (choice,) = stream(text("ab", finish="length") | {"choices": [
        {"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "length"}]}).choices
    assert (choice.logprobs, choice.token_times_s) == ([-0.5, -0.25], [0.0, 0.0])


def test_chat_logprobs():
    tops = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]
    content = [{"token": "a", "logprob": -1.0, "bytes": None, "top_logprobs": top} for top in (tops, [])]
    entry = {"index": 0, "delta": {"content": "aa"}, "logprobs": {"content": content}, "finish_reason": "stop"}
    (choice,) = stream({"choices": [entry]}).choices
    assert (choice.logprobs, choice.runner_ups) == ([-1.0, -1.0], [-2.0, None])


def test_the_runner_up_is_the_best_of_the_others():
    """Entries of the best tokens hold the chosen one, and lose one of two that are spelt alike."""
    logprobs = {"tokens": ["a", "b", "c"], "token_logprobs": [-0.5, -0.25, -3.0], "text_offset": [],
                "top_logprobs": [{"a": -0.5, "z": -1.0}, {"b": -0.25}, {"c": -3.0, "x": -0.1, "y": -9}]}
    entry = {"index": 0, "text": "abc", "logprobs": logprobs, "finish_reason": "length"}
    assert stream({"choices": [entry]}).choices[0].runner_ups == [-1.0, None, -0.1]


def test_logprobs_of_the_prompt():
    entry = {"index": 0, "text": "a", "finish_reason": "length",
             "prompt_logprobs": [None, {"7": {"logprob": -1.5, "rank": 2}, "9": {"logprob": -0.5, "rank": 1}}, {}]}
    assert stream({"choices": [entry]}).choices[0].prompt_logprobs == [None, -1.5, None]


def test_of_log_probabilities_what_is_no_object_tells_no_runner_up():
    entry = {"index": 0, "text": "a", "logprobs": {"token_logprobs": [-0.1], "content": ["x"]}, "finish_reason": "stop"}
    answer = stream({"choices": [entry]})
    assert (answer.error, answer.choices[0].logprobs, answer.choices[0].runner_ups) == (None, [-0.1], [None])


def test_log_probabilities_are_added_and_those_before_not_copied():
    reading = _ChoiceReading(0, None)
    entry = {"text": "a", "logprobs": {"token_logprobs": [-0.5]}}
    reading.take(entry, 0.0)
    before = reading.choice.logprobs, reading.choice.runner_ups
    reading.take(entry, 1.0)
    assert (before[0] is reading.choice.logprobs, before[1] is reading.choice.runner_ups) == (True, True)
    assert before == ([-0.5] * 2, [None] * 2)


def test_a_finish_reason_is_kept_to_a_hundred_characters():
    assert stream(text("a", finish="x" * 10_000)).choices[0].finish_reason == "x" * 100


def test_empty_events_are_no_fault_and_a_stream_of_nothing_else_is_cut_short():
    (one, two) = sse(text("a"), text("b", finish="stop"), done=False)
    answer = parse_stream_answer(200, [one, (0.5, b"data:\n\n"), (0.6, b"event: ping\ndata: \n\n"), two])
    assert (answer.error, answer.truncated, answer.choices[0].text) == (None, False, "ab")
    empty = parse_stream_answer(200, [(0.0, b"data:\n\n")])
    assert (empty.error, empty.truncated, empty.choices) == (None, True, [])


def test_choices_interleave_and_come_out_in_order():
    answer = stream(text("b", 1), text("a", 0), text("B", 1, "stop"), text("A", 0, "length"))
    assert [(c.index, c.text, c.finish_reason, c.token_times_s) for c in answer.choices] == [
        (0, "aA", "length", [1.0, 3.0]), (1, "bB", "stop", [0.0, 2.0])]
    assert answer.finish_events == 2


def test_a_second_finish_of_a_choice_is_counted():
    assert stream(text("a", finish="stop"), text("", finish="stop")).finish_events == 2


def test_the_end_of_the_body_ends_a_stream_without_done():
    """transformers sends no [DONE]; its last chunk has finish reason and usage."""
    last = text("", finish="length") | {"usage": usage(3, 1)["usage"]}
    answer = stream(text("t300"), last, done=False)
    assert (answer.truncated, answer.usage.completion_tokens, answer.choices[0].token_times_s) == (False, 1, [0.0])


def test_a_stream_without_finish_is_truncated():
    assert stream(text("a"), done=False).truncated
    assert stream(text("a"), done=True).truncated
    assert stream(text("a", 0, "stop"), text("b", 1)).truncated
    assert parse_stream_answer(200, []).truncated


def test_a_stream_cut_inside_an_event_keeps_what_came():
    chunks = [*sse(text("a"), done=False), (5.0, b'data: {"choices": [{"ind')]
    answer = parse_stream_answer(200, chunks)
    assert (answer.truncated, answer.error, answer.choices[0].text) == (True, None, "a")


@pytest.mark.parametrize("event", [
    {"error": {"message": "out of blocks", "type": "server_error", "code": 500}},
    {"error": "out of blocks"},
    {"object": "error", "message": "out of blocks", "code": 500},
])
def test_errors_inside_a_stream_keep_the_tokens_before(event):
    answer = stream(text("a"), event)
    assert (answer.error, answer.choices[0].text, answer.truncated) == ("out of blocks", "a", True)


def test_an_error_that_is_no_json():
    """transformers does not escape the text that it puts between quotes."""
    answer = stream(text("a"), '{"error": "no "page" left"}', done=False)
    assert "no \"page\" left" in answer.error


def test_an_event_named_error():
    chunks = [(0.0, b'event: error\ndata: {"message": "gone"}\n\n')]
    assert "gone" in parse_stream_answer(200, chunks).error


def test_nan_logprobs_are_read():
    chunk = json.dumps({"choices": [{"index": 0, "text": "a", "finish_reason": "stop",
                                     "logprobs": {"token_logprobs": [float("nan")]}}]})
    assert stream(chunk).error is None


def test_words_give_ids_and_times_where_the_engine_gives_text():
    answer = stream(text("t300 t301"), text(" t3"), text("02"), text(" t303", finish="length"), read_text=Codec.decode)
    (choice,) = answer.choices
    assert choice.token_ids == [300, 301, 302, 303]
    assert choice.token_times_s == [0.0, 0.0, 1.0, 3.0]


@given(st.lists(st.integers(272, 4095), min_size=1, max_size=30), st.data())
def test_words_are_counted_once_however_the_text_is_cut(ids, data):
    words = Codec.encode(ids)
    cuts = data.draw(st.sets(st.integers(1, max(1, len(words) - 1))))
    edges = [0, *sorted(cuts), len(words)]
    pieces = [words[a:b] for a, b in pairwise(edges)]
    (choice,) = stream(*(text(piece) for piece in pieces), read_text=Codec.decode).choices
    assert choice.token_ids == ids
    assert len(choice.token_times_s) == len(ids)


def test_log_probabilities_beside_words_make_no_tokens_of_them():
    """However many stand there: what counts is what is verified."""
    stray = {"logprobs": {"token_logprobs": [-0.1] * 100}}
    (choice,) = stream(text("t300 t301", **stray), text(" t302", finish="length", **stray),
                       read_text=Codec.decode).choices
    assert (choice.token_ids, choice.token_times_s) == ([300, 301, 302], [0.0, 0.0, 1.0])


def test_ids_of_the_engine_win_over_words():
    (choice,) = stream(text("t300", finish="stop", token_ids=[300, 1]), read_text=Codec.decode).choices
    assert (choice.token_ids, choice.token_times_s) == ([300, 1], [0.0, 0.0])


def test_usage_zeros_before_the_last_do_not_count():
    zero = text("a", finish="stop") | {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    assert stream(zero, usage(4, 1)).usage.prompt_tokens == 4


@pytest.mark.parametrize("event", [
    {"choices": [7]}, {"choices": [{"index": "x"}]}, {"choices": [{"text": 5}]}, {"choices": 3}, {"usage": 3},
    {"usage": {"prompt_tokens": -1}}, {"choices": [{"token_ids": ["a"]}]}, [1], "nothing",
    {"choices": [{"logprobs": {"token_logprobs": "x"}}]},
    {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1, "top_logprobs": [{"token": ["a"]}]}]}}]},
    f'{{"choices": [{{"x": NaN, "logprobs": {{"token_logprobs": [{10**400}]}}}}]}}',
    f'{{"choices": [{{"x": NaN, "prompt_logprobs": [{{"1": {{"logprob": {10**400}}}}}]}}]}}',
])
def test_nonsense_in_a_stream_is_an_error_and_not_a_crash(event):
    answer = stream(text("a"), event, text("b", finish="stop"))
    assert answer.error
    assert answer.choices[0].text.startswith("a")


@pytest.mark.parametrize("depth", [110, 1000, 1020])  # orjson reads 1024 levels, and Python's repr fewer
@pytest.mark.parametrize("head", [b'{"error": ', b'{"detail": ', b'{"choices": ', b'{"usage": '])
def test_an_answer_nested_too_deeply_is_a_fault_of_protocol_and_keeps_the_tokens_before(head, depth):
    body = head + b"[" * depth + b"1" + b"]" * depth + b"}"
    with pytest.raises(EngineProtocol):
        parse_answer(200, body)
    assert parse_answer(500, body).error
    answer = parse_stream_answer(200, [*sse(text("a"), done=False), (2.0, b"data: " + body + b"\n\n")])
    assert answer.error
    assert answer.choices[0].text == "a"


def test_a_wide_answer_is_not_a_deep_one():
    many = [[[index]] for index in range(500)]
    assert stream(text("a", finish="stop", extra=many)).error is None


def test_a_whole_answer_in_place_of_a_stream_is_a_fault_of_protocol():
    with pytest.raises(EngineProtocol, match="server-sent events"):
        parse_stream_answer(200, [(0.0, json.dumps(text("a", finish="stop")).encode())])


def test_whole_completion_and_chat():
    entry = {"index": 0, "text": "a b", "finish_reason": "length", "token_ids": [1, 2], "prompt_token_ids": [9]}
    answer = parse_answer(200, json.dumps({"choices": [entry], "usage": {"completion_tokens": 2}}).encode())
    assert (answer.choices[0].token_ids, answer.choices[0].token_times_s) == ([1, 2], [])
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (2, None)
    chat = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "t300"}, "finish_reason": "stop"}]}
    assert parse_answer(200, json.dumps(chat).encode(), Codec.decode).choices[0].token_ids == [300]


@pytest.mark.parametrize(("status", "body", "said"), [
    (400, b'{"error": {"message": "too long", "code": 400}}', "too long"),
    (400, b'{"object": "error", "message": "too long"}', "too long"),
    (422, b'{"detail": "Unexpected fields"}', "Unexpected fields"),
    (503, b'{"error": "worker dead"}', "worker dead"),
    (500, b"Internal Server Error", "Internal Server Error"),
    (502, b"", "HTTP 502"),
])
def test_refusals(status, body, said):
    for answer in (parse_answer(status, body), parse_stream_answer(status, [(0.0, body)])):
        assert (answer.status, answer.error, answer.choices) == (status, said, [])


@pytest.mark.parametrize("body", [
    b"", b"[]", b"<html>", b'{"choices": []}', b'{"id": 1}', b'{"choices": [{"index": []}]}', b"[" * 100_000,
])
def test_a_whole_answer_that_is_none_is_a_fault_of_protocol(body):
    with pytest.raises(EngineProtocol):
        parse_answer(200, body)


def test_prompt_logprobs_and_the_name_of_the_answer():
    told = [None, {"7": {"logprob": -0.5, "rank": 2}, "3": {"logprob": -0.25, "rank": 1}}]
    choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": told}
    answer = parse_answer(200, json.dumps({"id": "cmpl-1", "choices": [choice]}).encode())
    assert (answer.id, answer.choices[0].prompt_logprobs) == ("cmpl-1", [None, -0.5])
