"""The client's own error, against the stub's stamps."""

from __future__ import annotations

import asyncio
import sys
from array import array
from contextlib import nullcontext
from pathlib import Path

import pytest

from pabench import calibration
from pabench.analysis import load_run, summarise
from pabench.calibration import calibrate_run, peak_streams
from pabench.engines.launch import EngineProcess
from pabench.errors import UsageError
from pabench.load import run_workload
from pabench.load.calibrate import arrivals, calibrate
from pabench.load.connection import Exchange
from pabench.load.manifest import Calibration, read_manifest
from pabench.series import Series
from pabench.stub import StubOptions, StubServer
from tests.load.support import Examined, workload


def test_a_few_streams_are_read_to_a_few_milliseconds() -> None:
    found = calibrate(4, itl_ms=10.0, duration_s=1.0)
    assert found.num_tokens == 4 * 95
    assert 0 < found.arrival_p50_ms <= found.arrival_p99_ms <= found.arrival_max_ms
    assert found.arrival_p50_ms < 5
    assert found.tokens_per_s == pytest.approx(400, rel=0.3)


def test_an_event_has_come_with_its_last_byte() -> None:
    exchange = Exchange(0, 0.0)
    exchange.pieces = [b'data: {"pabench_sent_ns": 100', b'0000000}\n\ndata: {"pabench_sent_ns": 2000000000}\n\n']
    exchange.times_s = array("d", [1.5, 2.5])
    seen, sent = arrivals(exchange)
    assert (seen.tolist(), sent.tolist()) == ([2.5, 2.5], [1.0, 2.0])


def test_a_run_that_is_calibrated_says_so_and_is_judged_by_it(tmp_path: Path) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=20.0, itl_ms=5.0)) as server:
            await run_workload(Examined(), workload(num_requests=12), tmp_path / "run", url=server.url, label="stub")

    asyncio.run(go())
    found = calibrate_run(tmp_path / "run")
    noted = read_manifest(tmp_path / "run").calibration
    assert noted is not None
    assert (noted.streams, noted.arrival_p99_ms) == (2, found.arrival_p99_ms)
    manifest = read_manifest(tmp_path / "run")
    manifest.calibration = Calibration(streams=2, itl_ms=5.0, arrival_p50_ms=9e3, arrival_p99_ms=9e3, gap_p99_ms=0.0)
    manifest.write(tmp_path / "run")
    reasons = summarise(load_run(tmp_path / "run")).validity.reasons
    assert sum("against the stub" in reason for reason in reasons) == 2


def test_each_load_of_a_series_is_calibrated_at_its_own_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_DURATION_S", 0.5)
    command = [sys.executable, "-m", "pabench", "stub", "--ttft-ms", "20", "--itl-ms", "5", "--port", "{port}"]
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=tmp_path / "stub.log") as stub:
        series = Series(Examined(), stub.url, "stub", 0, lambda *_: nullcontext(lambda _: None), calibrate=True)
        for number, users in enumerate((1, 3)):
            load = workload(arrivals={"kind": "closed", "users": users})
            run, summary = series.run(number, load, tmp_path / str(users))
            assert run.manifest.calibration is not None
            assert run.manifest.calibration.streams == users
            assert summary.client_error_ms == run.manifest.calibration.arrival_p99_ms
    with pytest.raises(UsageError, match="come whole: leave --calibrate"):
        series.require(workload(beam_width=2))


def test_answers_of_one_token_are_calibrated_at_a_gap_of_the_stubs_own(tmp_path: Path) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=5.0)) as server:
            await run_workload(Examined(), workload(output_tokens={"law": "fixed", "tokens": 1}), tmp_path / "run",
                               url=server.url, label="stub")

    asyncio.run(go())
    assert calibrate_run(tmp_path / "run").itl_ms == 10.0
    assert read_manifest(tmp_path / "run").calibration is not None


def test_streams_at_once_are_counted(tmp_path: Path) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=5.0, itl_ms=1.0)) as server:
            await run_workload(Examined(), workload(arrivals={"kind": "closed", "users": 3}), tmp_path / "run",
                               url=server.url, label="stub")

    asyncio.run(go())
    assert peak_streams(load_run(tmp_path / "run").requests) == 3


def test_bad_input_is_said() -> None:
    with pytest.raises(UsageError, match="got 0, 10 ms"):
        calibrate(0)
