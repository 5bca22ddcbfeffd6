"""What an answer is worth: right, wrong, short, empty or hostile, each with its one outcome."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from pabench.analysis import summarise
from pabench.engines.base import EngineFacts
from pabench.errors import UsageError
from pabench.load import Manifest, run_workload, verify
from pabench.probe import Codec
from pabench.stub import StubOptions, StubServer
from tests.load.support import CAPABILITIES, Examined, against, against_stub, checked, only, serving, stream, workload


def test_chats_are_sent_as_chats_and_verified(tmp_path: Path) -> None:
    load = workload(api="chat", warmup_requests=2)
    facts = EngineFacts("openai", "stub", 4096, capabilities=CAPABILITIES | {"chat"})
    said: list[dict[str, Any]] = []

    async def go() -> Manifest:
        async with StubServer(StubOptions(ttft_ms=5.0, itl_ms=1.0)) as server:
            manifest = await run_workload(Examined(facts), load, tmp_path / "run", url=server.url, label="stub")
            said.extend(server.stub.bodies)
            return manifest

    run = checked(tmp_path / "run", asyncio.run(go()))
    only(run, "ok")
    assert run.requests["verified_tokens"].tolist() == [8] * 6
    assert run.requests["prompt_tokens"].tolist() == [12] * 6
    assert run.manifest.workload.api == "chat"
    assert len(said) == 8
    for body in said:
        assert "prompt" not in body
        [message] = body["messages"]
        assert message["role"] == "user"
        assert len(Codec.decode(message["content"])) == 12


def test_a_chat_needs_an_engine_that_takes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs chat, which dialect 'openai' of this engine lacks"):
        against_stub(tmp_path / "run", workload(api="chat"))


def test_wrong_tokens_are_found_and_diagnosed(tmp_path: Path) -> None:
    run = against_stub(tmp_path / "run", workload(), wrong_every=4)
    only(run, "wrong")
    assert (run.requests["wrong_tokens"] > 0).all()
    assert "expected" in json.loads(run.requests["diagnosis"][0])["text"]
    summary = summarise(run)
    assert summary.verified_tokens_per_s == 0
    assert summary.throughput_tokens_per_s > 0
    assert not summary.validity.valid
    assert len(summary.diagnoses) == 5


def test_a_foreign_token_names_the_request_it_belongs_to(tmp_path: Path) -> None:
    prompts: list[list[int]] = []

    async def leak(request: web.Request) -> web.StreamResponse:
        ids = Codec.decode((await request.json())["prompt"])
        prompts.append(ids)
        while len(prompts) < 2:
            await asyncio.sleep(0.001)
        other = prompts[1] if prompts[0] == ids else prompts[0]
        return web.Response(body=stream(other[5:9]))

    load = workload(num_requests=2, output_tokens={"law": "fixed", "tokens": 4})
    run = against(tmp_path / "run", load, leak)
    only(run, "wrong")
    for mine, other in ((0, 1), (1, 0)):
        diagnosis = json.loads(run.requests["diagnosis"][mine])
        assert diagnosis["kind"] == "foreign"
        assert diagnosis["owner"] == run.requests["request_id"][other]


def test_forked_samples_are_verified_branch_by_branch(tmp_path: Path) -> None:
    load = workload(prompt="fork", temperature=1.0, n=3, prompt_tokens={"law": "fixed", "tokens": 25})
    run = against_stub(tmp_path / "run", load)
    only(run, "ok")
    assert run.requests["verified_tokens"].tolist() == [24] * 6
    assert set(run.requests["token_choices"][0]) == {0, 1, 2}


@pytest.mark.parametrize(("body", "kind"), [
    (b'{"error": {"message": "out of memory"}}', "protocol"),
    (b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n', "stream"),
    (b"", "empty"),
    (b"data: [DONE]\n\n", "empty"),
    (stream([]), "empty"),
    (b"<html>a proxy</html>", "protocol"),
])
def test_a_200_without_tokens_is_never_a_success(tmp_path: Path, body: bytes, kind: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    run = against(tmp_path / "run", workload(num_requests=2), answer)
    only(run, "error", kind)


def event(**choice: object) -> bytes:
    return b'data: {"choices": [' + json.dumps({"index": 0, "text": "t300 "} | choice).encode() + b"]}\n\n"


@pytest.mark.parametrize("body", [
    b'data: {"error": ' + b'{"a": ' * 300 + b"1" + b"}" * 300 + b"}\n\n",
    event(finish_reason="\ud800"),
    event(token_ids=[2**63]),
    event(text="t99999999999999999999 ", finish_reason="length"),
    event(index=2**70),
    b'data: {"choices": [], "usage": {"completion_tokens": 9223372036854775808}}\n\n',
])
def test_one_hostile_answer_costs_no_record(tmp_path: Path, body: bytes) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        ids = Codec.decode((await request.json())["prompt"])
        return web.Response(body=body if asked == 1 else stream(ids[3:11]))

    run = against(tmp_path / "run", workload(num_requests=3), answer)
    assert len(run.requests) == 3
    assert (run.requests["outcome"] == "ok").sum() == 2


@pytest.mark.parametrize(("keep", "finish", "kind"), [(8, False, "truncated"), (5, True, "length")])
def test_a_right_but_short_answer_is_not_ok(tmp_path: Path, keep: int, finish: bool, kind: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        ids = Codec.decode((await request.json())["prompt"])
        return web.Response(body=stream(ids[3:3 + keep], finish))

    run = against(tmp_path / "run", workload(num_requests=2), answer)
    only(run, "error", kind)
    assert run.requests["wrong_tokens"].tolist() == [0, 0]
    assert run.requests["verified_tokens"].tolist() == [keep, keep]


def told(tokens: int, samples: int, usage: bool) -> bytes:
    """A stream of so many samples of so many words each, in one chunk a word, usage at its end."""
    events: list[dict[str, object]] = [
        {"choices": [{"index": i, "text": "word ", "finish_reason": "stop" if j == tokens - 1 else None}]}
        for i in range(samples) for j in range(tokens)]
    if usage:
        events.append({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": tokens * samples}})
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(("tokens", "samples", "usage", "capable", "outcome"), [
    (8, 2, True, True, "ok"),
    (3, 2, True, True, "error"),    # asked to go on, it stopped
    (3, 2, True, False, "ok"),      # it cannot be asked to go on
    (3, 2, False, True, "error"),   # nobody can count them, but it says that it stopped
    (3, 2, False, False, "ok"),
    (8, 1, True, False, "error"),   # the samples can always be counted
    (16, 1, True, True, "error"),
])
def test_unverified_answers_are_held_to_what_was_asked(
    tmp_path: Path, tokens: int, samples: int, usage: bool, capable: bool, outcome: str
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=told(tokens, samples, usage))

    capabilities = CAPABILITIES if capable else CAPABILITIES - {"ignore_eos"}
    examined = Examined(EngineFacts("openai", "m", 4096, capabilities=capabilities), None)

    async def go() -> Manifest:
        async with serving(answer) as url:
            load = workload(prompt="text", num_requests=2, n=2)
            return await run_workload(examined, load, tmp_path / "run", url=url, label="x")

    run = checked(tmp_path / "run", asyncio.run(go()))
    only(run, outcome, None if outcome == "ok" else "length")
    notes = [note for note in run.manifest.notes if "shorter" in note]
    short = "shorter than asked for: 2 of 2 answers, which ended of their own accord"
    assert notes == ([short] if outcome == "ok" and tokens < 8 else [])


def test_of_many_wrong_answers_the_first_are_diagnosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_DIAGNOSES", 2)
    run = against_stub(tmp_path / "run", workload(), wrong_every=4)
    only(run, "wrong")
    assert run.requests["diagnosis"].notna().tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("reason", ["abort", "cancelled", "error"])
def test_an_answer_that_the_engine_gave_up_is_an_error(reason: str, tmp_path: Path) -> None:
    """Of an engine whose answers may end early, too: this one has no `ignore_eos`."""
    async def answer(_: web.Request) -> web.Response:
        body = stream([5, 6, 7], finish=False).replace(b"data: [DONE]\n\n", b"") + b"data: " + orjson.dumps(
            {"choices": [{"index": 0, "text": "", "finish_reason": reason}]}) + b"\n\ndata: [DONE]\n\n"
        return web.Response(body=body, content_type="text/event-stream")

    examined = Examined(EngineFacts("openai", "m", 4096, capabilities=CAPABILITIES - {"ignore_eos"}), None)

    async def go() -> Manifest:
        async with serving(answer) as url:
            return await run_workload(examined, workload(prompt="text"), tmp_path / "run", url=url, label="x")

    run = checked(tmp_path / "run", asyncio.run(go()))
    only(run, "error", "stream")
    assert set(run.requests["error_text"]) == {f"the engine broke the answer off: its finish reason is '{reason}'"}


def test_answers_that_come_whole_are_told(tmp_path: Path) -> None:
    """Of an engine that did not stream when it was examined: usage then counts what no stream holds."""
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"index": 0, "text": "a b c", "finish_reason": "length"}],
                                  "usage": {"prompt_tokens": 12, "completion_tokens": 8}})

    examined = Examined(EngineFacts("openai", "m", 4096, capabilities=CAPABILITIES - {"stream"}), None)

    async def go() -> Manifest:
        async with serving(answer) as url:
            return await run_workload(examined, workload(prompt="text"), tmp_path / "run", url=url, label="x")

    run = checked(tmp_path / "run", asyncio.run(go()))
    only(run, "ok")
    assert [note.partition(",")[0] for note in run.manifest.notes] == ["answers come whole"]
