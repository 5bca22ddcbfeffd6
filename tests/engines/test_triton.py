"""Triton's generate extension against a stand-in with its habits and its traps. No Triton server has run here."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from pabench.analysis import load_run
from pabench.engines import dialect, examine
from pabench.engines.base import EngineFacts, GenerationRequest
from pabench.engines.client import EngineClient
from pabench.engines.triton import TritonDialect
from pabench.errors import EngineProtocol, UsageError
from pabench.load import run_loop, run_workload, runner
from pabench.probe import PRESETS, Codec, Ring
from pabench.telemetry.exposition import parse_exposition
from pabench.telemetry.scrape import Scraper
from pabench.telemetry.vocabulary import KVFacts, KVSample
from tests.engines.standin import event, run, serving
from tests.load.support import Examined, workload

SPEECH = dialect("triton")
PAGE = """\
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 64
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 128
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="reused",model="tensorrt_llm",version="1"} 2
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.25
nv_inference_pending_request_count{model="ensemble",version="1"} 3
"""
MODELS = ("postprocessing", "preprocessing", "tensorrt_llm", "ensemble")


def said(text: str) -> dict[str, object]:
    return {"model_name": "ensemble", "model_version": "1", "sequence_end": False, "sequence_id": 0,
            "sequence_index": 0, "sequence_start": False, "text_output": text, "cum_log_probs": 0.0,
            "output_log_probs": [0.0, 0.0, 0.0]}


def routes(*, models=MODELS, echo=False, accumulate=False, fails_after=None, stops_after=None):
    """A stand-in that serves the probe: it goes on round the ring it was sent."""

    def pieces(asked) -> list[str]:
        ids = Codec.decode(asked["text_input"])
        ring, count = ids[2:-1], asked["max_tokens"]
        new = [f" t{ring[(at + 1) % len(ring)]}" for at in range(count)][:stops_after]
        if echo:
            new[0] = asked["text_input"] + new[0]
        return ["".join(new[: at + 1]) for at in range(len(new))] if accumulate else new

    async def generate(request):
        return web.json_response(said("".join(pieces(await request.json()))))

    async def generate_stream(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for at, piece in enumerate(pieces(await request.json())):
            if at == fails_after:
                await response.write(event({"error": "in ensemble 'ensemble', out of blocks"}))
                return response
            await response.write(event(said(piece)))
        return response

    found = {"GET /v2": {"name": "triton", "version": "2.60.0", "extensions": ["generate"]},
             "GET /v2/health/ready": (200, ""),
             "POST /v2/repository/index": [{"name": name, "version": "1", "state": "READY"} for name in models]}
    for name in models:
        found |= {f"POST /v2/models/{name}/generate": generate,
                  f"POST /v2/models/{name}/generate_stream": generate_stream}
    return found


def asked_of(options, ask, **client):
    async def go():
        async with serving(routes(**options)) as url, EngineClient(url, SPEECH, "ensemble", **client) as engine:
            return await ask(engine)

    return run(go())


def test_what_it_is_asked():
    path, body = SPEECH.build(GenerationRequest("t300 t301", 7, seed=3), "a b")
    assert path == "/v2/models/a%20b/generate_stream"
    assert body == {"text_input": "t300 t301", "max_tokens": 7, "stream": True, "exclude_input_in_output": True,
                    "bad_words": "", "stop_words": "", "top_k": 1, "seed": 3, "end_id": -1}
    path, body = SPEECH.build(GenerationRequest("x", 7, temperature=0.5, stream=False, ignore_eos=False), "m")
    assert (path, body["temperature"], body["top_k"], body["top_p"]) == ("/v2/models/m/generate", 0.5, 0, 1.0)
    assert "end_id" not in body
    for changes in ({"n": 2}, {"logprobs": True}, {"chat": True}, {"beam_width": 2}, {"prompt": (1, 2)},
                    {"stop_token_ids": (3,)}):
        with pytest.raises(UsageError, match="triton"):
            SPEECH.build(GenerationRequest(**({"prompt": "x", "max_tokens": 1} | changes)), "m")


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_stream_ends_where_it_ends(accumulate):
    ring = Ring((300, 301, 302), 16)
    answer = asked_of({"accumulate": accumulate}, lambda engine: engine.generate(GenerationRequest(ring.prompt, 5)))
    (choice,) = answer.choices
    assert (choice.token_ids, len(choice.token_times_s)) == (ring.expected(5), 5)
    assert (choice.finish_reason, answer.usage, answer.truncated, answer.error) == (None, None, False, None)


@pytest.mark.parametrize(("texts", "whole", "counts"), [
    ((" the", " the", " the"), " the the the", [1, 1, 1]),           # a model that repeats itself
    ((" t1", " t12"), " t1 t12", [1, 1]),                            # the second begins with the first by chance
    ((" Par", " Paris", " Paris is", ""), " Paris is", [1, 1, 1, 0]),
    (("", " a", " a b", " a b"), " a b", [0, 1, 1, 0]),              # the last says all once more
    ((" a b",), " a b", [1]),
])
def test_what_is_new_is_told_from_what_was_said(texts, whole, counts):
    answer = SPEECH.parse_stream(200, [(at, event(said(text))) for at, text in enumerate(texts)])
    (choice,) = answer.choices
    assert choice.text == whole
    assert [choice.token_times_s.count(at) for at in range(len(texts))] == counts


@pytest.mark.parametrize(("pieces", "error", "truncated"), [
    ((event(said(" t5")), event({"error": "out of blocks"})), "out of blocks", False),
    ((event(said(" t5")), event(b"{broken")), "expected JSON in the stream", False),
    ((event(said(" t5")), b'data: {"text_output": " t'), None, True),
    ((event({"text": "x"}),), "the text 'text_output'", True),
    ((event({"text_output": [" a", " b"]}),), "the text 'text_output'", True),
    ((), None, True),
])
def test_what_goes_wrong_in_a_stream_is_kept(pieces, error, truncated):
    answer = SPEECH.parse_stream(200, list(enumerate(pieces)), Codec.decode)
    assert answer.truncated is truncated
    assert (answer.error is None) if error is None else error in answer.error
    if pieces and pieces[0] == event(said(" t5")):
        assert answer.choices[0].token_ids == [5]


def test_whole_answers():
    assert SPEECH.parse(200, json.dumps(said(" t5 t6")).encode(), Codec.decode).choices[0].token_ids == [5, 6]
    assert SPEECH.parse(400, b'{"error": "unexpected shape"}').error == "unexpected shape"
    assert SPEECH.parse(200, b'{"error": "x"}').error == "x"
    for body in (b"<html>", b"[]", b'{"text_output": 3}'):
        with pytest.raises(EngineProtocol, match="expected"):
            SPEECH.parse(200, body)


def test_metrics():
    metrics = parse_exposition(PAGE, SPEECH.metric_names)
    assert SPEECH.kv_sample(metrics, 2.0) == KVSample(2.0, kv_usage=0.25, running=2, waiting=1)
    assert SPEECH.kv_facts(metrics) == KVFacts(64, 512, None, "paged")
    second = PAGE.replace('"tensorrt_llm"', '"other"').replace(" 512", " 256").replace("0.25", "0.75")
    both = parse_exposition(PAGE + second)
    assert SPEECH.kv_sample(both, 2.0) == KVSample(2.0, kv_usage=0.5, running=4, waiting=2)
    assert SPEECH.kv_facts(both) == KVFacts()  # two pools: neither is the engine's


def examined(monkeypatch, page=PAGE, answer=None, **kwargs):
    """What doctor finds, the metrics on a port of their own."""

    async def go():
        async with serving(answer or routes()) as url, serving({"GET /metrics": (200, page)}) as metrics:
            monkeypatch.setattr(TritonDialect, "metrics_path", f":{metrics.rpartition(':')[2]}/metrics")
            return await examine(url, timeout_s=3, **kwargs)

    return run(go())


def test_doctor_knows_it_without_a_list_of_openai_models(monkeypatch):
    found = examined(monkeypatch, probe="tiny")
    assert (found.facts.dialect, found.facts.model, found.probe) == ("triton", "ensemble", PRESETS["tiny"])
    assert {"stream", "ignore_eos", "kv_metrics", "running_metrics", "capacity"} <= found.facts.capabilities
    assert not {"token_ids", "usage", "n", "beam"} & found.facts.capabilities
    assert found.facts.kv == KVFacts(64, 512, None, "paged")
    notes = " ".join(found.notes)
    assert "4 models are served (ensemble, postprocessing, preprocessing, tensorrt_llm)" in notes
    assert "no metrics" not in notes


def test_doctor_does_not_guess_which_model_takes_text(monkeypatch):
    other = routes(models=("tokens", "words"))
    with pytest.raises(UsageError, match=r"2 models ready \(tokens, words\), none of them .* with --model"):
        examined(monkeypatch, answer=other)
    assert examined(monkeypatch, answer=other, model="words").facts.model == "words"
    assert examined(monkeypatch, answer=other, model="words", dialect="triton").facts.dialect == "triton"
    with pytest.raises(UsageError, match=r"model 'word' is not ready .*: tokens, words"):
        examined(monkeypatch, answer=other, model="word")
    unlisted = {name: answer for name, answer in other.items() if "repository" not in name}
    with pytest.raises(UsageError, match=r"does not list its models .* status 404"):
        examined(monkeypatch, answer=unlisted)
    assert examined(monkeypatch, answer=unlisted, model="words").facts.model == "words"


def test_what_is_no_triton_is_told_as_before():
    async def go(answer):
        async with serving(answer) as url:
            await examine(url, timeout_s=3)

    for about in ({}, {"GET /v2": {"name": "registry"}}, {"GET /v2": (200, "<html>")}):
        with pytest.raises(EngineProtocol, match="status 404: expected an"):
            run(go(about))


def test_doctor_refuses_an_engine_that_echoes(monkeypatch):
    with pytest.raises(EngineProtocol, match="sends the prompt back in front of its answer"):
        examined(monkeypatch, answer=routes(echo=True))


def test_metrics_that_are_not_there_are_a_note_and_no_dead_engine(monkeypatch):
    async def go():
        async with serving(routes()) as url:
            monkeypatch.setattr(TritonDialect, "metrics_path", ":9/metrics")
            found = await examine(url, timeout_s=3)
            async with EngineClient(url, SPEECH, "ensemble") as client:
                return found, await client.healthy()

    found, healthy = run(go())
    assert healthy
    assert any(":9/metrics" in note and "nothing answers there" in note for note in found.notes)
    assert "kv_metrics" not in found.facts.capabilities


@pytest.mark.parametrize(("options", "outcome", "kind"), [
    ({}, "ok", None),
    ({"accumulate": True}, "ok", None),
    ({"fails_after": 3}, "error", "stream"),
    ({"stops_after": 5}, "error", "length"),  # no finish reason says so, the number of tokens does
    ({"echo": True}, "wrong", None),
])
def test_a_run(monkeypatch, tmp_path, options, outcome, kind):
    scrapers = []

    def watched(*args):
        scrapers.append(Scraper(*args))
        return scrapers[-1]

    async def go():
        async with serving(routes(**options)) as url, serving({"GET /metrics": (200, PAGE)}) as metrics:
            monkeypatch.setattr(runner, "Scraper", watched)
            monkeypatch.setattr(TritonDialect, "metrics_path", f":{metrics.rpartition(':')[2]}/metrics")
            facts = EngineFacts("triton", "ensemble", None, capabilities=SPEECH.capabilities)
            return await run_workload(Examined(facts), workload(), tmp_path / "run", url=url, label="t")

    manifest = run_loop(go())
    made = load_run(tmp_path / "run")
    assert manifest.outcomes[outcome] == 6
    assert set(made.requests["error_kind"].dropna()) == ({kind} if kind else set())
    assert (made.telemetry["kv_usage"] == 0.25).all()
    assert manifest.client.scrapes >= 2
    assert [scraper.failed for scraper in scrapers] == [0]
