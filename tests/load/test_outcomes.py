"""Every scheduled request ends in exactly one outcome, whatever the engine does to it."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from pabench.analysis import summarise
from pabench.engines.base import EngineFacts
from pabench.errors import EngineUnreachable
from pabench.load import Manifest, run_workload
from pabench.probe import Codec
from tests.load.support import CAPABILITIES, Examined, against, against_stub, checked, only, serving, stream, workload


def test_right_answers_are_ok_and_verified(tmp_path: Path) -> None:
    run = against_stub(tmp_path / "run", workload())
    only(run, "ok")
    assert run.manifest.status == "complete"
    assert run.requests["verified_tokens"].tolist() == [8] * 6
    assert run.requests["wrong_tokens"].tolist() == [0] * 6
    assert run.requests["prompt_tokens"].tolist() == [12] * 6
    assert run.requests["output_tokens"].tolist() == [8] * 6
    assert (run.requests["sent_s"] >= run.requests["intended_s"]).all()
    assert (run.requests["first_s"] > run.requests["sent_s"]).all()
    assert not list((tmp_path / "run").glob("journal*"))


@pytest.mark.parametrize(("options", "outcome", "kind", "text"), [
    ({"status": 500}, "error", "http", "refuses every request with 500"),
    ({"status": 400}, "error", "http", "refuses every request with 400"),
    ({"error_after": 3}, "error", "stream", None),
    ({"cut_after": 3}, "error", "reset", None),
])
def test_faults_of_the_engine_are_errors_of_their_kind(
    tmp_path: Path, options: dict[str, float], outcome: str, kind: str, text: str | None
) -> None:
    run = against_stub(tmp_path / "run", workload(), **options)
    only(run, outcome, kind)
    assert run.manifest.status == "complete"
    if text is not None:
        assert run.requests["error_text"].str.contains(text).all()
    assert "no request succeeded" in summarise(run).validity.reasons


def test_some_errors_leave_the_others_alone(tmp_path: Path) -> None:
    run = against_stub(tmp_path / "run", workload(num_requests=10), error_rate=0.3)
    assert run.manifest.outcomes["error"] == 3
    assert run.manifest.outcomes["ok"] == 7


def test_silence_is_a_timeout_and_keeps_what_came_before(tmp_path: Path) -> None:
    run = against_stub(tmp_path / "run", workload(num_requests=4, timeout_s=0.4), stall_after=3)
    only(run, "timeout")
    assert run.requests["stream_tokens"].tolist() == [3] * 4
    assert run.requests["verified_tokens"].tolist() == [3] * 4


def test_no_answer_at_all_is_a_timeout(tmp_path: Path) -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    run = against(tmp_path / "run", workload(num_requests=2, timeout_s=0.2), silent)
    only(run, "timeout")
    assert run.requests["first_s"].isna().all()


def test_planned_cuts_are_aborted_and_what_came_is_verified(tmp_path: Path) -> None:
    load = workload(cancel_share=1.0, cancel_after_tokens=3, output_tokens={"law": "fixed", "tokens": 60})
    run = against_stub(tmp_path / "run", load)
    only(run, "aborted", "planned")
    assert (run.requests["verified_tokens"] >= 3).all()
    assert (run.requests["verified_tokens"] < 60).all()


def test_an_engine_that_dies_ends_the_run_soon_and_says_so(tmp_path: Path) -> None:
    begin = time.monotonic()
    load = workload(num_requests=40, arrivals={"kind": "constant", "rate_per_s": 10})
    run = against_stub(tmp_path / "run", load, die_after=5)
    assert time.monotonic() - begin < 3
    assert run.manifest.status == "failed"
    assert "takes no connection any more" in str(run.manifest.failure)
    outcomes = run.manifest.outcomes
    assert outcomes["ok"] == 5
    assert outcomes["error"] >= 3
    assert outcomes["unsent"] > 20
    assert outcomes["ok"] + outcomes["error"] + outcomes["unsent"] == 40
    assert set(run.requests.loc[run.requests["outcome"] == "unsent", "error_kind"]) == {"engine-died"}
    assert not summarise(run).validity.valid


def test_an_engine_that_dies_under_the_last_request_is_noticed_too(tmp_path: Path) -> None:
    run = against_stub(tmp_path / "run", workload(num_requests=2), die_after=1)
    assert run.manifest.status == "failed"
    assert run.manifest.outcomes["error"] == 1


def test_nothing_listening_is_said_before_any_file_is_written(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EngineUnreachable, match="nothing answers at"):
            asyncio.run(run_workload(Examined(), workload(), tmp_path / "run", url=url, label="x"))
    assert not (tmp_path / "run").exists()


def test_connections_closed_between_requests_are_no_failures(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        ids = Codec.decode((await request.json())["prompt"])
        return web.Response(body=stream(ids[3:11]))

    load = workload(num_requests=8, arrivals={"kind": "closed", "users": 2, "think_s": 0.15})
    run = against(tmp_path / "run", load, answer, keepalive_timeout=0.05)
    only(run, "ok")


@pytest.mark.parametrize(("word", "role"), [("t7", True), ("data:", False), ("data: data:", True)])
def test_a_planned_cut_counts_tokens_and_not_events(word: str, role: bool, tmp_path: Path) -> None:
    """Nor what looks like an event."""
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        texts = ([""] if role else []) + [f"{word} "] * 60
        for text in texts:
            event = {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
            await response.write(b"data: " + orjson.dumps(event) + b"\n\n")
            await asyncio.sleep(0.01)
        return response

    load = workload(prompt="text", num_requests=2, cancel_share=1.0, cancel_after_tokens=8,
                    output_tokens={"law": "fixed", "tokens": 60})
    examined = Examined(EngineFacts("openai", "m", 4096, capabilities=CAPABILITIES), None)

    async def go() -> Manifest:
        async with serving(answer) as url:
            return await run_workload(examined, load, tmp_path / "run", url=url, label="x")

    run = checked(tmp_path / "run", asyncio.run(go()))
    only(run, "aborted", "planned")
    assert run.requests["stream_tokens"].tolist() == [8, 8]
