"""Bodies without a server: what is refused since it would change the answer, and complaints about any JSON."""

from __future__ import annotations

import orjson
import pytest

from reference_engine.serving.bodies import MAX_STOPS, ChatBody, CompletionBody, TokenizeBody, read_body
from reference_engine.serving.errors import ApiError

CHAT = {"messages": [{"role": "user", "content": "x"}]}
FOR_ALL = [  # field, a value that asks for something, one that asks for nothing
    ("truncate_prompt_tokens", 2, None), ("skip_special_tokens", False, True), ("logits_processors", ["x"], []),
    ("guided_json", {}, None), ("guided_regex", "a+", ""), ("guided_choice", ["a"], []), ("guided_grammar", "g", ""),
    ("structured_outputs", {"regex": "a"}, {}), ("response_format", {"type": "json_object"}, {"type": "text"}),
    ("tools", [{}], []), ("tool_choice", "required", "auto"), ("tool_choice", {"type": "function"}, "none"),
    ("functions", [{}], []), ("function_call", {"name": "f"}, "auto"),
]
FOR_CHATS = [
    ("chat_template", "x", None), ("chat_template_kwargs", {"enable_thinking": False}, {}),
    ("continue_final_message", True, False), ("documents", [{}], []),
]


@pytest.mark.parametrize(("kind", "body", "fields"), [
    (CompletionBody, {"prompt": "x"}, FOR_ALL), (ChatBody, CHAT, FOR_ALL + FOR_CHATS), (TokenizeBody, CHAT, FOR_CHATS),
])
def test_what_would_change_the_answer_is_refused(kind, body, fields):
    for name, asks, harmless in fields:
        read_body(kind, orjson.dumps(body | {name: harmless}), "probe")
        with pytest.raises(ApiError, match=f"{name} is not supported") as caught:
            read_body(kind, orjson.dumps(body | {name: asks}), "probe")
        assert (caught.value.status, caught.value.param) == (400, name)


def test_stop_strings_are_bounded():
    read_body(CompletionBody, orjson.dumps({"prompt": "x", "stop": ["s"] * MAX_STOPS}), "probe")
    with pytest.raises(ApiError, match=f"stop: .*17 stop strings, expected at most {MAX_STOPS}"):
        read_body(CompletionBody, orjson.dumps({"prompt": "x", "stop": ["s"] * (MAX_STOPS + 1)}), "probe")


@pytest.mark.parametrize(("field", "value"), [
    *((field, b"[" * 1020 + b"]" * 1020) for field in (b"prompt", b"n", b"stop", b"stream_options")),
    (b"n", b'{"a":' * 1000 + b"1" + b"}" * 1000),
], ids=lambda value: value[:9].decode())
def test_a_value_nested_too_deep_to_be_shown_is_complained_about(field, value):
    with pytest.raises(ApiError, match=r"got [\[{]"):
        read_body(CompletionBody, b'{"prompt":"x","%b":%b}' % (field, value), "probe")


def test_null_is_absent_inside_stream_options_too():
    raw = b'{"prompt":"x","stream":true,"stream_options":{"include_usage":null,"continuous_usage_stats":true}}'
    options = read_body(CompletionBody, raw, "probe").stream_options
    assert options is not None
    assert (options.include_usage, options.continuous_usage_stats) == (False, True)
