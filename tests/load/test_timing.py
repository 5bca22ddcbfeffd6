"""A server of known timing, and what the whole chain measures of it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import web

from pabench.analysis import Run, load_run, summarise
from pabench.analysis.latency import e2e_ms, ttft_ms
from pabench.load import Manifest, run_loop, run_workload
from pabench.load.client import PreparedRequest, prepare
from pabench.load.connection import Connection
from pabench.load.line import asks_for_stamps
from pabench.probe import Codec
from pabench.stub import StubOptions, StubServer
from tests.load.support import Examined, serving, workload


def measured(folder: Path, load_fields: dict[str, object], **options: float) -> Run:
    async def go() -> Manifest:
        async with StubServer(StubOptions(**options)) as server:
            return await run_workload(Examined(), workload(**load_fields), folder, url=server.url, label="stub")

    asyncio.run(go())
    return load_run(folder)


def test_ttft_itl_and_tpot_come_out_as_the_server_made_them(tmp_path: Path) -> None:
    fields = {"num_requests": 8, "output_tokens": {"law": "fixed", "tokens": 20}, "warmup_requests": 2}
    run = measured(tmp_path / "run", fields, ttft_ms=60.0, itl_ms=10.0)
    summary = summarise(run)
    assert summary.itl_ms is not None
    assert summary.tpot_ms is not None
    # The stub keeps an absolute schedule and is never early; a busy machine makes single chunks late, not the mean.
    ttft = ttft_ms(run.requests)
    assert 59.5 < ttft.min() < 66
    assert summary.itl_ms.mean == pytest.approx(10, abs=1.5)
    assert summary.tpot_ms.p50 == pytest.approx(10, abs=1.5)
    assert e2e_ms(run.requests).min() == pytest.approx(60 + 19 * 10, abs=12)
    assert (summary.itl_ms.count, summary.tpot_ms.count) == (8 * 19, 8)


def test_a_chunk_of_several_tokens_gives_an_entry_for_each(tmp_path: Path) -> None:
    fields = {"num_requests": 4, "output_tokens": {"law": "fixed", "tokens": 20}}
    summary = summarise(measured(tmp_path / "run", fields, ttft_ms=20.0, itl_ms=10.0, tokens_per_chunk=4))
    assert summary.itl_ms is not None
    assert summary.itl_ms.count == 4 * 19
    assert summary.itl_ms.p50 == pytest.approx(10, abs=2)  # not 40, and not 0 for three of four
    assert summary.itl_ms.mean == pytest.approx(10 * 16 / 19, abs=1.5)  # the first chunk's tokens came at once


def test_a_role_chunk_is_no_first_token(tmp_path: Path) -> None:
    run = measured(tmp_path / "run", {"num_requests": 4}, ttft_ms=60.0, itl_ms=2.0, role_chunk=True)
    assert ttft_ms(run.requests).min() > 59.5


def test_events_in_one_read_share_its_arrival_and_spread_its_gap(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        ids = Codec.decode((await request.json())["prompt"])[3:11]
        response = web.StreamResponse()
        await response.prepare(request)
        for pair in (ids[:2], ids[2:4], ids[4:6], ids[6:]):
            await asyncio.sleep(0.04)
            await response.write(b"".join(_event(token) for token in pair))
        await response.write(b'data: {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}\n\n')
        return response

    async def go() -> None:
        async with serving(answer) as url:
            await run_workload(Examined(), workload(num_requests=2), tmp_path / "run", url=url, label="x")

    asyncio.run(go())
    summary = summarise(load_run(tmp_path / "run"))
    assert summary.outcomes["ok"] == 2
    assert summary.itl_ms is not None
    assert summary.itl_ms.count == 14
    assert summary.itl_ms.p50 == pytest.approx(20, abs=4)  # not 40, not 0


def _event(token: int) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "text": f"t{token} ", "finish_reason": None}]}) + b"\n\n"


def test_a_late_start_counts_from_the_schedule_and_not_from_the_send(tmp_path: Path) -> None:
    """Coordinated omission: the loop is blocked while a request is due."""
    stalled: list[float] = []

    def stall_once(_: object) -> None:
        if len(stalled) == 1:
            time.sleep(0.3)
        stalled.append(0.0)

    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=5, itl_ms=1)) as server:
            load = workload(arrivals={"kind": "constant", "rate_per_s": 20}, num_requests=16)
            await run_workload(Examined(), load, tmp_path / "run", url=server.url, label="x", progress=stall_once)

    asyncio.run(go())
    summary = summarise(load_run(tmp_path / "run"))
    assert summary.ttft_ms is not None
    assert summary.ttft_intended_ms is not None
    assert summary.lateness_ms is not None
    assert summary.lateness_ms.max > 150
    assert summary.ttft_intended_ms.max > summary.ttft_ms.p50 + 150
    assert not summary.validity.valid
    assert any("late sending" in reason for reason in summary.validity.reasons)
    assert any("loop lag" in reason for reason in summary.validity.reasons)


@pytest.mark.skipif(not asks_for_stamps(None), reason="the kernel stamps on Linux alone")
@pytest.mark.parametrize("session", [{}, {"session": {"turns": {"law": "fixed", "tokens": 2}, "turn_tokens": {
    "law": "fixed", "tokens": 2}, "think_s": 0.02}}])
def test_a_late_client_hides_nothing_of_that_in_a_closed_loop(session: dict[str, object], tmp_path: Path) -> None:
    """The loop stands still while an answer comes: the next request is due when it was there, not when it was read."""
    asked = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            time.sleep(0.1)
            body = b"data: [DONE]\n\n"
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        def log_message(self, *_: object) -> None: ...

    async def stall() -> None:
        while not asked.is_set():
            await asyncio.sleep(0.001)
        time.sleep(0.5)

    async def go(url: str) -> None:
        load = workload(num_requests=2, arrivals={"kind": "closed", "users": 1}, **session)
        await asyncio.gather(run_workload(Examined(), load, tmp_path / "run", url=url, label="x"), stall())

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run_loop(go(f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
    first, second = load_run(tmp_path / "run").requests.itertuples()
    assert 0.09 < first.end_s - first.sent_s < 0.3
    assert second.intended_s == pytest.approx(first.end_s + (0.02 if session else 0.0), abs=1e-6)
    assert second.asked_s - second.intended_s > 0.15


@pytest.mark.skipif(not asks_for_stamps(None), reason="the kernel stamps on Linux alone")
def test_a_wall_clock_set_forward_lets_no_answer_end_before_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour between arrival and reading: the next request would be due an hour ago."""
    monkeypatch.setattr("pabench.load.line._arrival", lambda _: time.monotonic() - 3600)
    requests = measured(tmp_path / "run", {"num_requests": 4}, ttft_ms=5.0, itl_ms=1.0).requests
    assert (requests["first_s"] == requests["sent_s"]).all()
    assert (requests["end_s"] == requests["sent_s"]).all()
    assert (requests["intended_s"] >= 0).all()


def test_the_opening_of_a_connection_is_not_the_clients_lateness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Connection.connect

    async def slow(*arguments: Any) -> None:
        await asyncio.sleep(0.1)
        await genuine(*arguments)

    monkeypatch.setattr(Connection, "connect", slow)
    run = measured(tmp_path / "run", {"num_requests": 4}, ttft_ms=20.0, itl_ms=1.0)
    first = run.requests["user"].drop_duplicates().index  # the second takes the connection that was kept
    assert (run.requests["sent_s"] - run.requests["asked_s"]).loc[first].min() > 0.09
    summary = summarise(run)
    assert summary.lateness_ms is not None
    assert summary.ttft_intended_ms is not None
    assert summary.lateness_ms.max < 50
    assert summary.ttft_intended_ms.max > 115
    assert not any("late sending" in reason for reason in summary.validity.reasons)


def test_a_request_is_made_before_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> PreparedRequest:
        time.sleep(0.02)
        return prepare(*arguments)

    monkeypatch.setattr("pabench.load.worker.prepare", slow)
    run = measured(tmp_path / "run", {"num_requests": 8, "arrivals": {"kind": "constant", "rate_per_s": 10}},
                   ttft_ms=5.0, itl_ms=1.0)
    late_s = run.requests["sent_s"] - run.requests["intended_s"]
    assert late_s[1:].median() < 0.01  # the first is due at once


def test_the_first_requests_do_not_wait_for_the_collection_of_garbage(tmp_path: Path) -> None:
    ballast = [[number] for number in range(3_000_000)]
    begin = time.monotonic()
    gc.collect()
    takes_ms = (time.monotonic() - begin) * 1e3
    summary = summarise(measured(tmp_path / "run", {"num_requests": 4}, ttft_ms=5.0, itl_ms=1.0))
    assert len(ballast) == 3_000_000
    assert summary.lateness_ms is not None
    assert summary.lateness_ms.max < takes_ms / 2


def test_throughput_is_of_the_steady_window_and_agrees_with_the_servers_rate(tmp_path: Path) -> None:
    fields = {"num_requests": 16, "arrivals": {"kind": "closed", "users": 4},
              "output_tokens": {"law": "fixed", "tokens": 30}}
    summary = summarise(measured(tmp_path / "run", fields, ttft_ms=20.0, itl_ms=5.0))
    each_s = (20 + 29 * 5) / 1000
    assert summary.throughput_tokens_per_s == pytest.approx(4 * 30 / each_s, rel=0.2)
    assert summary.verified_tokens_per_s == summary.throughput_tokens_per_s
    assert summary.live_tokens_mean is not None
    # From the first token on a request holds 12 + 1 to 12 + 30 tokens, and nothing in the 20 ms before.
    assert summary.live_tokens_mean == pytest.approx(4 * (12 + 15.5) * (29 * 5) / (20 + 29 * 5), rel=0.2)
    assert 0 < summary.window_s[0] < summary.window_s[1] <= summary.duration_s
    assert np.isfinite(summary.request_rate_per_s)


@pytest.mark.parametrize("arrivals", [{"kind": "constant", "rate_per_s": 40}, {"kind": "closed", "users": 2}])
def test_a_long_last_answer_dilutes_neither_lag_nor_cpu_share(arrivals: dict[str, object], tmp_path: Path) -> None:
    """A client that is busy for as long as the load is on, and idle behind it."""
    begin_s, asked = time.monotonic(), 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 16:
            await asyncio.sleep(1.5)
        return web.Response(body=b"data: [DONE]\n\n")

    async def busy() -> None:
        while asked < 16 and time.monotonic() < begin_s + 5:
            until_s = time.monotonic() + 0.03
            while time.monotonic() < until_s:
                pass
            await asyncio.sleep(0)

    async def go() -> Manifest:
        async with serving(answer) as url:
            load = workload(num_requests=16, arrivals=arrivals)
            running, _ = await asyncio.gather(
                run_workload(Examined(), load, tmp_path / "run", url=url, label="x"), busy())
            return running

    client = asyncio.run(go()).client
    assert client.loop_lag_p50_ms is not None
    assert client.loop_lag_p50_ms > 5
    assert client.cpu_share is not None
    assert client.cpu_share > 0.5
