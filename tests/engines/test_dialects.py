"""What each dialect says."""

import json

import pytest

from pabench.engines import DIALECTS, dialect
from pabench.engines.base import CAPABILITIES, GenerationRequest, ImagePart
from pabench.engines.wording import worded
from pabench.errors import UsageError

IDS = (0, 16, 300, 301, 300)


def body_of(name, **changes):
    prompt = IDS if "token_ids" in dialect(name).capabilities else "<sep> t16"
    path, body = dialect(name).build(GenerationRequest(**({"prompt": prompt, "max_tokens": 7} | changes)), "m")
    own = {"sglang-generate": "/generate", "triton": "/v2/models/m/generate" + "_stream" * changes.get("stream", True)}
    assert path == ("/v1/chat/completions" if changes.get("chat") else own.get(name, "/v1/completions"))
    json.dumps(body)
    return body


@pytest.mark.parametrize("name", ["vllm", "reference"])
def test_what_goes_beyond_openai(name):
    body = body_of(name, beam_width=3, n=3, cache_salt="s", prompt_logprobs=True, stop_token_ids=(300, 301))
    assert (body["use_beam_search"], body["n"], body["cache_salt"]) == (True, 3, "s")
    assert (body["prompt_logprobs"], body["stop_token_ids"]) == (0, [300, 301])
    chat = body_of(name, prompt="t300 t301", chat=True, logprobs=True)
    assert chat["messages"] == [{"role": "user", "content": "t300 t301"}]
    assert (chat["logprobs"], "prompt" in chat) == (True, False)


def test_a_lower_priority_goes_first_whatever_the_engines_sign():
    for priority in (-2, 0, 3):
        assert body_of("vllm", priority=priority)["priority"] == priority
        assert body_of("reference", priority=priority)["priority"] == priority
        assert body_of("sglang", priority=priority)["priority"] == -priority
    assert "priority" not in body_of("vllm")
    assert "priority" not in body_of("sglang")


@pytest.mark.parametrize("name", ["openai", "sglang-generate", "tensorrt-llm", "triton", "lmdeploy", "tgi", "llamacpp"])
@pytest.mark.parametrize("priority", [0, -1])
def test_a_priority_is_never_left_out_silently(name, priority):
    with pytest.raises(UsageError, match=f"dialect '{name}' has no priority, got priority={priority}"):
        body_of(name, priority=priority)


@pytest.mark.parametrize("name", ["openai", "transformers", "llamacpp"])
@pytest.mark.parametrize("field", [{"beam_width": 2}, {"cache_salt": "s"}, {"prompt_logprobs": True},
                                   {"stop_token_ids": (300,)}])
def test_dialects_without_words_for_it_say_so(name, field):
    with pytest.raises(UsageError, match=f"dialect '{name}' has no {next(iter(field))}"):
        body_of(name, **field)


IMAGE = ImagePart(2, 4, "data:image/png;base64,AA==")


def test_an_image_stands_in_place_of_its_words():
    named = ImagePart(5, 6, IMAGE.uri, "mine")
    request = GenerationRequest("a b c d e f g", 1, chat=True, images=(IMAGE, named))
    _, body = dialect("vllm").build(request, "m")
    part = {"type": "image_url", "image_url": {"url": IMAGE.uri}}
    assert body["messages"] == [{"role": "user", "content": [
        {"type": "text", "text": "a b"}, part, {"type": "text", "text": "e"}, part | {"uuid": "mine"},
        {"type": "text", "text": "g"}]}]


@pytest.mark.parametrize("name", DIALECTS)
def test_an_image_is_never_left_out_silently(name):
    with pytest.raises(UsageError, match="a completion has no images, got 1"):
        body_of(name, images=(IMAGE,))


def test_who_knows_no_names_of_images_says_so():
    with pytest.raises(UsageError, match="dialect 'openai' has no names of images, got 'mine'"):
        body_of("openai", chat=True, images=(ImagePart(0, 1, IMAGE.uri, "mine"),))


@pytest.mark.parametrize("name", DIALECTS)
def test_each_dialect_says_model_prompt_and_stream(name):
    body = body_of(name)
    assert body["stream"] is True
    in_body = name not in ("sglang-generate", "triton")  # the one's route serves one model, the other's names it
    assert body.get("model") == ("m" if in_body else None)
    assert body_of(name, stream=False)["stream"] is False
    assert "stream_options" not in body_of(name, stream=False)
    assert dialect(name).name == name
    assert dialect(name).capabilities <= CAPABILITIES


@pytest.mark.parametrize("name", ["vllm", "reference"])
def test_extended_dialects_ask_for_ids_and_exact_length(name):
    body = body_of(name, n=2, temperature=0.5, top_p=0.9, top_k=5, seed=3, logprobs=True, request_id="r1")
    assert body == {
        "model": "m", "prompt": list(IDS), "max_tokens": 7, "temperature": 0.5, "stream": True, "n": 2, "top_p": 0.9,
        "top_k": 5, "seed": 3, "logprobs": 2, "stream_options": {"include_usage": True}, "return_token_ids": True,
        "ignore_eos": True, "request_id": "r1"}
    assert "ignore_eos" not in body_of(name, ignore_eos=False)


def test_openai_says_only_what_every_server_knows():
    allowed = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options", "n", "seed", "logprobs"}
    assert set(body_of("openai", n=2, seed=1, logprobs=True, request_id="r")) == allowed


def test_transformers_says_only_what_its_strict_server_takes():
    body = body_of("transformers", seed=4, request_id="r")
    assert set(body) == {"model", "prompt", "stream", "seed", "generation_config"}
    assert json.loads(body["generation_config"]) == {"max_new_tokens": 7, "do_sample": False, "eos_token_id": -1}
    sampled = json.loads(body_of("transformers", temperature=0.5, top_p=0.9, ignore_eos=False)["generation_config"])
    assert sampled == {"max_new_tokens": 7, "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}


@pytest.mark.parametrize(("name", "changes"), [
    ("transformers", {"n": 2}), ("transformers", {"logprobs": True}), ("transformers", {"prompt": IDS}),
    ("openai", {"prompt": IDS}), ("openai", {"top_k": 3}), ("openai", {"cache_salt": "a"}),
    ("openai", {"prompt_logprobs": True}), ("transformers", {"cache_salt": "a"}),
])
def test_what_a_dialect_cannot_say_is_refused_before_sending(name, changes):
    with pytest.raises(UsageError, match=name):
        body_of(name, **changes)


def test_ids_become_words_only_where_they_must():
    request = GenerationRequest(IDS, 7)
    assert worded(request, dialect("vllm")) is request
    assert worded(request, dialect("transformers")).prompt == "<sep> t16 t300 t301 t300"
    text = GenerationRequest("hello", 7)
    assert worded(text, dialect("openai")) is text


def test_what_the_others_are_asked():
    common = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert set(body_of("tensorrt-llm")) == common | {"ignore_eos"}  # one field more, and it answers 400
    assert body_of("tensorrt-llm", beam_width=2, n=2)["use_beam_search"] is True
    assert set(body_of("mistralrs", seed=3)) == common - {"stream_options"} | {"ignore_eos"}
    assert set(body_of("tgi", seed=3)) == common | {"seed"}
    assert body_of("openvino")["stream_options"] == {"include_usage": True}  # one key more, and it answers 400
    assert body_of("openvino", logprobs=True, stream=False)["logprobs"] == 1
    sglang = body_of("sglang", request_id="r1", cache_salt="s", stop_token_ids=(300,))
    assert (sglang["rid"], sglang["cache_salt"], sglang["stop_token_ids"]) == ("r1", "s", [300])
    assert "request_id" not in sglang
    assert "ignore_eos" not in sglang  # which would have the stop ignored as well
    assert body_of("sglang")["ignore_eos"] is True


def test_sglang_gives_no_ids_in_the_stream_of_a_chat():
    """It answers 400 to whoever wants them."""
    chat = {"chat": True, "prompt": "t300 t301"}
    assert "return_token_ids" not in body_of("sglang", **chat)
    assert body_of("sglang", **chat, stream=False)["return_token_ids"] is True
    assert body_of("sglang")["return_token_ids"] is True


@pytest.mark.parametrize(("name", "changes"), [
    ("sglang", {"beam_width": 2}), ("sglang", {"prompt_logprobs": True}), ("tensorrt-llm", {"cache_salt": "s"}),
    ("tensorrt-llm", {"prompt": IDS}), ("lmdeploy", {"n": 2}), ("tgi", {"n": 2}), ("tgi", {"top_k": 3}),
    ("openvino", {"n": 2}), ("openvino", {"logprobs": True}), ("mistralrs", {"stop_token_ids": (3,)}),
])
def test_what_the_others_cannot_say(name, changes):
    with pytest.raises(UsageError, match=name):
        body_of(name, **changes)


def test_llamacpp_switches_off_samplers_that_the_protocol_has_not():
    assert body_of("llamacpp") == {
        "model": "m", "prompt": "<sep> t16", "max_tokens": 7, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True}
    sampled = body_of("llamacpp", temperature=0.5, n=2)
    assert (sampled["top_k"], sampled["min_p"], sampled["n"]) == (0, 0.0, 2)
    assert body_of("llamacpp", top_k=5)["top_k"] == 5


def test_an_unknown_dialect_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"reference, vllm, sglang, .*, transformers, openai"):
        dialect("acme")


def test_a_tool_call_is_generated_text_and_its_chunks_have_times():
    deltas = [{"role": "assistant", "content": ""}, {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
              {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, {"tool_calls": [3, {"function": 4}]}]
    chunks = [(float(at), b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n")
              for at, delta in enumerate(deltas)]
    (choice,) = dialect("openai").parse_stream(200, chunks).choices
    assert choice.token_times_s == [1.0, 2.0]
