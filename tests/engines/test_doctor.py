"""Doctor: what is there is found by trying, and what is not there is told in one line."""

import json

import pytest
from aiohttp import web

from pabench.engines import examine, trials
from pabench.errors import EngineDied, EngineProtocol, EngineTimeout, EngineUnreachable, UsageError
from pabench.probe import PRESETS, build_checkpoint
from pabench.stub import StubOptions, StubServer
from tests.engines.standin import event, examined_routes, models, run, streaming

FAST = {"ttft_ms": 1.0, "itl_ms": 0.1}


def examined(options=None, **kwargs):
    async def main():
        async with StubServer(options or StubOptions(**FAST)) as server:
            return await examine(server.url, **kwargs)

    return run(main())


def test_the_stub_with_extended_fields():
    found = examined(dialect="vllm")
    assert found.facts.capabilities == {
        "token_ids", "n", "sampling", "logprobs", "ignore_eos", "stream", "usage", "cached_tokens", "context_length",
        "chat", "priority"}
    assert (found.facts.dialect, found.facts.model, found.facts.max_context_tokens) == ("vllm", "stub", 65536)
    assert found.facts.kv is None
    assert found.probe is PRESETS["gqa"]
    assert any("assumed" in note for note in found.notes)


def test_the_stub_in_words():
    found = examined()
    assert found.facts.dialect == "openai"
    assert not found.facts.capabilities & {"token_ids", "ignore_eos"}
    assert {"stream", "usage", "n"} <= found.facts.capabilities
    assert found.probe is PRESETS["gqa"]


def test_a_named_preset_or_folder_is_taken(tmp_path):
    assert examined(probe="mqa").probe is PRESETS["mqa"]
    build_checkpoint(PRESETS["tiny"], tmp_path / "probe")
    assert examined(probe=tmp_path / "probe").probe == PRESETS["tiny"]
    with pytest.raises(UsageError, match="unknown probe preset 'acme'"):
        examined(probe="acme")
    with pytest.raises(UsageError, match="holds no KV probe"):
        examined(probe=tmp_path)


def test_wrong_tokens_are_no_probe_unless_it_is_said_to_be_one():
    wrong = StubOptions(wrong_every=3, **FAST)
    found = examined(wrong, dialect="vllm")
    assert found.probe is None
    (note,) = [note for note in found.notes if "ring did not come back" in note]
    assert "expected t2049 t2050 t2051 t2052 t2053 t2054 from token 0 on" in note
    assert "got t2049 t2050 t2050" in note
    late = examined(StubOptions(wrong_every=9, **FAST), dialect="vllm").notes
    (note,) = [note for note in late if "ring did not come back" in note]
    assert "expected t2055 t2056 t2057 t2058 t2059 t2048 from token 6 on, got t2055 t2056 t2056 " in note
    hint = "a probe that is misread answers like this. If it is one, name it with --probe"
    assert any(hint in note for note in late)
    named = examined(StubOptions(wrong_every=9, **FAST), dialect="vllm", probe="gqa").notes
    assert not any(hint in note for note in named)
    assert examined(wrong, dialect="vllm", probe="gqa").probe is PRESETS["gqa"]


def test_an_engine_that_is_not_ready_yet_is_asked_again():
    """Not taken for one that does not stream."""
    asked = []

    async def complete(request):
        asked.append(await request.json())
        if len(asked) == 1:
            return web.Response(status=503, text="warming up")
        body = event({"choices": [{"index": 0, "text": "one two", "finish_reason": "length"}]}) + b"data: [DONE]\n\n"
        return web.Response(body=body, content_type="text/event-stream")

    found = examined_routes({"GET /v1/models": models(), "POST /v1/completions": complete})
    assert "stream" in found.facts.capabilities
    assert asked[1] == asked[0]
    assert any(note.startswith("the first answer: answered with status 503") for note in found.notes)


def test_an_engine_that_fails_and_says_that_it_is_not_healthy_is_not_examined(monkeypatch):
    monkeypatch.setattr(trials, "_PAUSE_S", 0.0)
    dead = {"GET /v1/models": models(), "POST /v1/completions": (503, "engine dead")}
    with pytest.raises(EngineDied, match=r"is not healthy, and failed the first request 3 times: answered with status "
                                         r"503: engine dead: start it anew$"):
        examined_routes(dead | {"GET /health": (503, "dead")})
    assert examined_routes(dead | {"GET /health": (200, "")}).facts.capabilities == frozenset()


def test_a_model_that_is_not_served_is_refused_where_nothing_answers_for_it():
    routes = {"GET /v1/models": models(), "POST /v1/completions": (404, "no such model")}
    with pytest.raises(UsageError, match=r"--model is 'n', and the engine serves m$"):
        examined_routes(routes, model="n")


def test_the_folder_that_the_engine_names_tells_the_preset(tiny_probe):
    async def complete(request):
        choice = {"index": 0, "text": "hm", "finish_reason": "length"}
        return web.json_response({"choices": [choice] * (await request.json()).get("n", 1)})

    found = examined_routes({"GET /v1/models": models(root=str(tiny_probe)), "POST /v1/completions": complete})
    assert found.facts.model_root == str(tiny_probe)
    assert found.probe == PRESETS["tiny"]  # although the ring did not come back: the engine is at fault
    assert any("did not come back" in note for note in found.notes)


def test_a_model_folder_that_cannot_be_read_is_a_note_and_no_end():
    """The file system refuses names of more than 255 bytes; another user's folder it refuses in the same way."""
    found = examined_routes({"GET /v1/models": models(root="/" + "模" * 120), "POST /v1/completions": (400, "no")})
    assert found.probe is None
    assert any("folder cannot be read: File name too long: /模" in note for note in found.notes)


def test_an_engine_without_streams_is_examined_whole():
    async def complete(request):
        return web.json_response({"choices": [{"index": 0, "text": "one two", "finish_reason": "length"}],
                                  "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    found = examined_routes({"GET /v1/models": models(), "POST /v1/completions": complete})
    assert found.facts.capabilities == {"usage"}
    assert found.probe is None
    assert any("expected server-sent events" in note for note in found.notes)
    assert any(note.startswith("n: asked for") for note in found.notes)


def test_a_strict_server_that_names_its_model_only_in_an_error():
    """transformers serve: no model listed, the pinned one named in a 400; unknown fields are refused."""
    seen = []

    async def complete(request):
        body = await request.json()
        if body["model"] != "/models/x":
            said = f"Server is pinned to '/models/x'; requested '{body['model']}'."
            return web.json_response({"detail": said}, status=400)
        unexpected = set(body) - {"model", "prompt", "stream", "generation_config", "seed"}
        if unexpected or not isinstance(body["prompt"], str):
            return web.json_response({"detail": f"Unexpected fields in the request: {unexpected}"}, status=422)
        length = json.loads(body["generation_config"])["max_new_tokens"]
        seen.append(body)
        usage = {"prompt_tokens": 3, "completion_tokens": length, "total_tokens": 3 + length}
        last = {"choices": [{"index": 0, "text": "" if body["stream"] else "t5 " * length, "finish_reason": "length"}]}
        if not body["stream"]:
            return web.json_response(last | {"usage": usage})
        pieces = [{"choices": [{"index": 0, "text": f" t{i}", "finish_reason": None}]} for i in range(length)]
        return await streaming([event(piece) for piece in [*pieces, last | {"usage": usage}]])(request)

    async def no_models(_):
        return web.json_response({"object": "list", "data": []}, headers={"Server": "uvicorn", "x-request-id": "1"})

    found = examined_routes({"GET /v1/models": no_models, "GET /openapi.json": {"paths": {"/load_model": {}}},
                             "POST /v1/completions": complete})
    assert (found.facts.dialect, found.facts.model) == ("transformers", "/models/x")
    assert found.facts.model_root == "/models/x"
    assert found.facts.capabilities == {"stream", "usage", "ignore_eos"}
    assert "no metrics: /metrics answers with status 404" in found.notes
    assert seen[0]["prompt"].startswith("<sep> t16 t2048")


@pytest.mark.parametrize("described", [{"paths": {"/generate": {}}}, {"paths": None}, (200, "<html>"), (404, "")])
def test_what_only_looks_like_transformers_serve_is_plain_openai(described):
    async def one_model(_):
        return web.json_response(models(), headers={"Server": "uvicorn", "x-request-id": "1"})

    found = examined_routes({"GET /v1/models": one_model, "GET /openapi.json": described,
                             "POST /v1/completions": (400, "")})
    assert found.facts.dialect == "openai"
    assert any("answers like transformers" in note for note in found.notes)


@pytest.mark.parametrize(("status", "has_it"), [(500, True), (503, True), (400, False), (422, False)])
def test_an_engine_that_fails_on_samples_is_broken_and_one_that_refuses_them_unable(status, has_it):
    ring = [2048 + (1 + i) % 12 for i in range(16)]

    async def complete(request):
        body = await request.json()
        if body.get("n", 1) > 1:
            return web.json_response({"error": {"message": "several samples"}}, status=status)
        choice = {"index": 0, "text": "", "token_ids": ring, "finish_reason": "length"}
        usage = {"prompt_tokens": 15, "completion_tokens": 16, "total_tokens": 31}
        answer = {"choices": [choice | {"text": "x"}], "usage": usage}
        return await streaming([event(answer)])(request) if body.get("stream") else web.json_response(answer)

    found = examined_routes({"GET /v1/models": models(owned_by="vllm"), "POST /v1/completions": complete})
    assert ("n" in found.facts.capabilities) is has_it
    (note,) = [note for note in found.notes if note.startswith("n: ")]
    assert f"answered with status {status}: several samples" in note
    assert ("taken for a fault, since every engine of dialect vllm has it" in note) is has_it


def test_one_sample_instead_of_two_is_a_sound_answer_without_the_feature():
    answer = {"choices": [{"index": 0, "text": "x", "finish_reason": "length"}]}

    async def complete(request):
        body = await request.json()
        return await streaming([event(answer)])(request) if body.get("stream") else web.json_response(answer)

    routes = {"GET /v1/models": models(owned_by="vllm"), "POST /v1/completions": complete}
    found = examined_routes(routes)
    assert "n" not in found.facts.capabilities
    assert "n: asked for and not given" in found.notes


def test_texts_of_the_engine_cannot_steer_a_terminal():
    hostile = "evil\x1b]0;title\x07\u202e\n"
    found = examined_routes({"GET /v1/models": models(id=hostile, root=hostile),
                             "POST /v1/completions": (500, hostile)})
    text = json.dumps(found.to_json(), ensure_ascii=False)
    assert not any(char in text for char in ("\x1b", "\x07", "\u202e"))
    assert "\\u001b" not in text


@pytest.mark.parametrize(("told", "found"), [(4096, 4096), (2**64 - 1, None), (2**31, None), (-1, None), ("x", None)])
def test_a_length_beyond_all_counting_is_none(told, found):
    """Some engines write the largest number of their type where there is no limit."""
    routes = {"GET /v1/models": models(max_model_len=told), "POST /v1/completions": (400, "no")}
    assert examined_routes(routes).facts.max_context_tokens == found


def test_several_models_are_told_and_one_can_be_named():
    many = {"object": "list", "data": [{"id": "a"}, {"id": "b", "max_model_len": 7}]}
    routes = {"GET /v1/models": many, "POST /v1/completions": (400, "no")}
    found = examined_routes(routes)
    assert found.facts.model == "a"
    assert any("2 models are served (a, b)" in note for note in found.notes)
    assert examined_routes(routes, model="b").facts.max_context_tokens == 7
    answered = event({"choices": [{"index": 0, "text": "x", "finish_reason": "length"}]})
    unknown = examined_routes(routes | {"POST /v1/completions": streaming([answered])}, model="c").notes
    assert any("the model 'c' is none of those that the engine names (a, b)" in note for note in unknown)


@pytest.mark.parametrize(("routes", "said"), [
    ({}, "answers with status 404"),
    ({"GET /v1/models": (401, "no")}, "asks for a key"),
    ({"GET /v1/models": (200, "<html>")}, "no JSON object"),
    ({"GET /v1/models": {"hello": 1}}, "no list of models"),
    ({"GET /v1/models": {"data": []}}, "lists no model"),
])
def test_what_is_no_engine_is_told_in_one_line(routes, said):
    with pytest.raises(EngineProtocol, match=said) as caught:
        examined_routes(routes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("url", "error"), [
    ("http://127.0.0.1:9", EngineUnreachable), ("http://no.such.invalid", EngineUnreachable), ("nonsense", UsageError),
])
def test_wrong_urls(url, error):
    with pytest.raises(error):
        run(examine(url, timeout_s=3))


def test_an_engine_that_never_answers_is_a_timeout():
    with pytest.raises(EngineTimeout):
        examined(StubOptions(stall_after=0, **FAST), timeout_s=0.3)


def test_an_engine_that_dies_under_examination_has_died():
    with pytest.raises(EngineDied):
        examined(StubOptions(die_after=0, **FAST), dialect="vllm", timeout_s=2)


@pytest.mark.parametrize(("refused", "known"), [
    (lambda salt: salt == "", True), (lambda salt: not isinstance(salt, str), True), (lambda salt: False, False),
    (lambda salt: True, False),
], ids=["empty, as vLLM", "no text, as SGLang", "ignored", "all"])
def test_salts_are_known_to_who_refuses_a_bad_one(refused, known):
    async def complete(request):
        body = await request.json()
        if "cache_salt" in body and refused(body["cache_salt"]):
            return web.json_response({"object": "error", "message": "cache_salt", "code": 400}, status=400)
        piece = {"index": 0, "text": " t5", "finish_reason": "length", "token_ids": [5]}
        if not body["stream"]:
            return web.json_response({"choices": [piece]})
        return web.Response(body=event({"choices": [piece]}) + b"data: [DONE]\n\n", content_type="text/event-stream")

    found = examined_routes({"GET /v1/models": models(owned_by="sglang"), "POST /v1/completions": complete})
    assert found.facts.dialect == "sglang"
    assert ("cache_salt" in found.facts.capabilities) == known
