"""What the folder of a run holds, and what is never in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest import mock

import orjson
import pytest
from aiohttp import web

from pabench.analysis import load_run, summarise
from pabench.engines.base import Choice, Completion, Usage
from pabench.errors import UsageError
from pabench.load import Manifest, read_manifest, run_workload
from pabench.load.journal import journals_in
from pabench.load.records import RequestRecord
from pabench.load.settle import _take_tokens
from pabench.probe import Codec
from pabench.stub import StubOptions, StubServer
from pabench.telemetry.scrape import Scraper
from tests.load.support import Examined, against, against_stub, checked, only, serving, stream, workload


@pytest.mark.parametrize("before", ["Incorrect API key provided: ", "x" * 294])  # the latter is cut inside the key
def test_a_key_that_the_engine_quotes_is_in_no_record(before: str, tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.Response:
        key = request.headers["Authorization"].removeprefix("Bearer ")
        return web.json_response({"error": {"message": f"{before}{key}"}}, status=401)

    async def go() -> Manifest:
        async with serving(refuse) as url:
            return await run_workload(Examined(), workload(), tmp_path / "run", url=url, label="x", api_key="sk-s3cret")

    run = checked(tmp_path / "run", asyncio.run(go()))
    only(run, "error", "http")
    assert set(run.requests["error_text"]) == {f"{before}***"}
    assert not any(b"sk-s" in path.read_bytes() for path in (tmp_path / "run").iterdir())


@pytest.mark.parametrize("status", [401, 200])
def test_nor_is_it_where_the_run_was_killed(status: int, tmp_path: Path) -> None:
    """Who recovers it does not know the key."""
    async def refuse(request: web.Request) -> web.Response:
        said = {"error": {"message": f"refused: {request.headers['Authorization']}"}}
        return (web.json_response(said, status=status) if status != 200 else
                web.Response(body=b"data: " + orjson.dumps(said) + b"\n\n", content_type="text/event-stream"))

    async def go() -> None:
        async with serving(refuse) as url:
            await run_workload(Examined(), workload(), tmp_path / "run", url=url, label="x", api_key="sk-s3cret")

    with mock.patch("pabench.load.runner.close_run", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        asyncio.run(go())
    assert not any(b"sk-s" in path.read_bytes() for path in (tmp_path / "run").iterdir())
    run = load_run(tmp_path / "run")
    assert set(run.requests["outcome"]) == {"error"}
    assert run.requests["error_text"].str.contains(r"refused: Bearer \*{9}$").all()


@pytest.mark.parametrize("said", ['data: {"detail": "no such key KEY"}\n\n', "data: Error: KEY\n\n"])
def test_a_long_key_is_in_no_journal_in_whatever_words_it_is_quoted(said: str, tmp_path: Path) -> None:
    key = "sk-proj-" + "0123456789" * 15

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(body=said.replace("KEY", key).encode(), content_type="text/event-stream")

    async def go() -> None:
        async with serving(refuse) as url:
            await run_workload(Examined(), workload(), tmp_path / "run", url=url, label="x", api_key=key)

    with mock.patch("pabench.load.runner.close_run", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        asyncio.run(go())
    assert load_run(tmp_path / "run").manifest.outcomes["error"] == 6
    assert not any(b"sk-p" in path.read_bytes() for path in (tmp_path / "run").iterdir())


def test_text_alone_is_counted_by_usage(tmp_path: Path) -> None:
    """Four tokens a chunk, and nothing in a chunk that says so: 16 tokens, 10 ms a chunk."""
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(4):
            await asyncio.sleep(0.01)
            choice = {"index": 0, "text": "four words in one ", "finish_reason": "length" if number == 3 else None}
            await response.write(b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n")
        usage = {"prompt_tokens": 12, "completion_tokens": 16, "total_tokens": 28}
        await response.write(b"data: " + orjson.dumps({"choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n")
        return response

    load = workload(prompt="text", num_requests=2, output_tokens={"law": "fixed", "tokens": 16})
    run = against(tmp_path / "run", load, answer)
    only(run, "ok")
    for row in run.requests.itertuples():
        assert len(row.token_times_s) == len(row.token_choices) == 16
    tpot_ms, span_s = summarise(run).tpot_ms, (run.requests["last_s"] - run.requests["first_s"])
    assert tpot_ms is not None
    assert tpot_ms.mean == pytest.approx(float((span_s / 15).mean()) * 1e3)
    assert any("usage counts other output tokens" in note for note in run.manifest.notes)


@pytest.mark.parametrize(("counted", "times_s"), [
    (8, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]), (5, [1.0, 2.0, 3.0, 4.0, 4.0]), (3, [1.0, 2.0, 3.0, 4.0]),
    (10**15, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]),  # 8 were asked for: what usage claims costs no memory
])
def test_chunks_of_text_share_what_usage_counts(counted: int, times_s: list[float]) -> None:
    record = RequestRecord("r", 0, 0, intended_s=0.0)
    choice = Choice(index=0, text="four chunks of text", token_times_s=[1.0, 2.0, 3.0, 4.0])
    _take_tokens(record, Completion(status=200, choices=[choice], usage=Usage(12, counted)), most=8)
    assert record.token_times_s == times_s
    assert (record.stream_tokens, record.token_choices, record.last_s) == (4, [0] * len(times_s), 4.0)


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    against_stub(tmp_path / "run", workload(num_requests=2))
    with pytest.raises(UsageError, match="already holds a run: give another folder"):
        against_stub(tmp_path / "run", workload(num_requests=2))


def test_nor_one_that_began_and_ended_while_this_one_was_prepared(tmp_path: Path) -> None:
    """Warming up takes minutes of some engines, and neither run holds the folder then."""
    folder = tmp_path / "run"

    async def answer(request: web.Request) -> web.StreamResponse:
        if "warm" in str(request.headers.get("X-Request-Id")):
            folder.mkdir()
            (folder / "manifest.json").write_text("another run's")
        return web.Response(body=stream(Codec.decode((await request.json())["prompt"])[3:11]))

    with pytest.raises(UsageError, match="already holds a run: give another folder"):
        against(folder, workload(num_requests=2, warmup_requests=1), answer)
    assert [path.read_text() for path in folder.iterdir()] == ["another run's"]


def test_keys_and_passwords_stay_out_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        ids = Codec.decode((await request.json())["prompt"])
        return web.Response(body=stream(ids[3:11]))

    async def go() -> Manifest:
        async with serving(answer) as url:
            launch = "serve --token s3cret --port {port}"
            monkeypatch.setattr("sys.argv", ["/some/where/pabench", "run", "--api-key", "s3cret", "--url",
                                             "http://me:pw@host/v1", "--header=s3cret", "--label", "it's mine", launch])
            return await run_workload(Examined(), workload(num_requests=2), tmp_path / "run", url=f"{url}/v1",
                                      label="x", api_key="s3cret")

    manifest = asyncio.run(go())
    assert seen == ["Bearer s3cret"] * 2
    assert manifest.command == [
        "pabench", "run", "--api-key", "***", "--url", "http://***@host/v1", "--header=***", "--label", "it's mine",
        "serve --token '***' --port '{port}'"]
    for path in (tmp_path / "run").iterdir():
        assert b"s3cret" not in path.read_bytes()


def test_warm_up_requests_are_sent_first_and_are_not_in_the_results(tmp_path: Path) -> None:
    ids: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        ids.append(request.headers.get("X-Request-Id"))
        body = await request.json()
        return web.Response(body=stream(Codec.decode(body["prompt"])[3:3 + body["max_tokens"]]))

    run = against(tmp_path / "run", workload(num_requests=4, warmup_requests=3), answer)
    assert ["warm" in str(name) for name in ids] == [True] * 3 + [False] * 4
    assert len(run.requests) == 4
    assert sorted(map(str, ids[3:])) == sorted(run.requests["request_id"])


def test_a_window_that_was_given_takes_the_place_of_the_one_found(tmp_path: Path) -> None:
    found = against_stub(tmp_path / "run", workload(window_s=(0.01, 0.05)), ttft_ms=5.0, itl_ms=2.0)
    assert found.manifest.window_s == (0.01, 0.05)


def test_who_breaks_off_the_wait_for_late_counters_keeps_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All had been answered: the books are made, and the run is complete."""
    async def broken_off(self: Scraper, *, patient: bool) -> None:
        assert patient
        raise asyncio.CancelledError

    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=5.0, itl_ms=1.0)) as server:
            await run_workload(Examined(), workload(), tmp_path / "run", url=server.url, label="x")

    monkeypatch.setattr(Scraper, "stop", broken_off)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(go())
    assert read_manifest(tmp_path / "run").status == "complete"
    assert read_manifest(tmp_path / "run").outcomes["ok"] == 6
    assert not journals_in(tmp_path / "run")
