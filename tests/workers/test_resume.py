"""A run that was broken off goes on: nothing that was answered is asked again, and everything gets its outcome."""

from __future__ import annotations

import asyncio
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pabench.analysis import Run, load_run, summarise
from pabench.cli import app
from pabench.engines.base import EngineFacts
from pabench.engines.doctor import examine
from pabench.errors import UsageError
from pabench.load import Manifest, Placement, ProgressState, resume_run, run_loop, run_workload
from pabench.load.calibrate import fast_stub
from pabench.load.journal import journals_in
from pabench.load.records import RequestRecord
from pabench.load.replan import those_over
from pabench.stub import StubOptions, StubServer
from pabench.telemetry.vocabulary import KVFacts
from tests.load.support import CAPABILITIES, Examined, broken_off, checked, workload
from tests.load.test_keeping import signalled

SESSIONS = {"turns": {"law": "fixed", "tokens": 3}, "turn_tokens": {"law": "fixed", "tokens": 4}}


def resumed(folder: Path, done: int = 6, processes: int = 1, **fields: object) -> tuple[Run, Run]:
    """The run as it was broken off, and at its end."""
    async def go() -> tuple[Run, Manifest]:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            await broken_off(lambda note: run_workload(
                Examined(), workload(**fields), folder, url=server.url, label="x", progress=note), done)
            before = load_run(folder)
            return before, await resume_run(Examined(), folder, url=server.url, placement=Placement(processes))

    before, manifest = run_loop(go())
    return before, checked(folder, manifest)


def whole(run: Run, count: int) -> None:
    """Every request has its answer, all of it right."""
    assert run.manifest.status == "complete"
    assert run.manifest.outcomes["ok"] == len(run.requests) == count
    assert run.requests["index"].tolist() == list(range(count))
    assert (run.requests["verified_tokens"] == 8).all()
    assert not journals_in(run.path)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_was_over_stays_and_the_rest_is_sent(tmp_path: Path, processes: int) -> None:
    before, after = resumed(tmp_path / "run", processes=processes, num_requests=40)
    whole(after, 40)
    over = before.requests[before.requests["outcome"] == "ok"]
    assert 6 <= len(over) < 40
    same = ["sent_s", "first_s", "end_s"]
    assert after.requests.loc[over.index, same].equals(over[same])
    (resumption,) = after.manifest.resumed
    rest = after.requests.drop(over.index)
    assert resumption.at_s == over["end_s"].max()
    assert (rest["intended_s"] >= resumption.at_s).all()
    assert after.manifest.notes[-1] == (f"resumed at {resumption.at_s:.1f} s of its clock: {len(over)} requests were "
                                        f"over, {40 - len(over)} were to be sent")
    assert after.manifest.started_at == before.manifest.started_at
    assert after.requests["request_id"].tolist() == before.requests["request_id"].tolist()


def test_arrivals_to_come_are_put_off_by_the_break(tmp_path: Path) -> None:
    before, after = resumed(tmp_path / "run", num_requests=30, arrivals={"kind": "constant", "rate_per_s": 50})
    whole(after, 30)
    at_s = after.manifest.resumed[0].at_s
    in_flight = before.requests["sent_s"].notna() & before.requests["outcome"].ne("ok")
    assert in_flight.any()
    assert (after.requests.loc[in_flight, "intended_s"] == at_s).all()
    rest = after.requests.loc[before.requests["sent_s"].isna(), "intended_s"]
    assert all(later - sooner == pytest.approx(0.02) for sooner, later in pairwise(rest))
    assert rest.iloc[0] == pytest.approx(at_s)
    came = before.requests.loc[in_flight, "sent_s"]
    assert after.manifest.resumed[0].again_s == min(came[came <= at_s], default=None)


def test_sessions_go_on_where_they_were(tmp_path: Path) -> None:
    _, after = resumed(tmp_path / "run", num_requests=30, arrivals={"kind": "poisson", "rate_per_s": 30},
                       session=SESSIONS)
    whole(after, 30)


def test_the_steady_window_is_in_one_part(tmp_path: Path) -> None:
    _, after = resumed(tmp_path / "run", done=30, num_requests=50)
    (resumption,) = after.manifest.resumed
    window = after.manifest.window_s
    assert window is not None
    assert window[1] <= resumption.at_s or window[0] >= resumption.at_s
    assert summarise(after).throughput_tokens_per_s > 0


def test_a_killed_client_goes_on_twice(tmp_path: Path) -> None:
    """SIGKILL, then a resumption that is interrupted, then one to the end."""
    folder = tmp_path / "run"
    assert signalled(folder, signal.SIGKILL) == -signal.SIGKILL
    late_ms = load_run(folder).manifest.client.lateness_max_ms

    async def go() -> Manifest:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            await broken_off(lambda note: resume_run(Examined(), folder, url=server.url, progress=note), 4)
            return await resume_run(Examined(), folder, url=server.url)

    run = checked(folder, run_loop(go()))
    whole(run, 40)
    assert len(run.manifest.resumed) == 2
    # Of the part before the kill the lateness is known, and nothing else: the window lies behind it.
    client, window_s = run.manifest.client, run.manifest.window_s
    assert run.manifest.unwatched == [0]
    assert window_s is not None
    assert window_s[0] >= run.manifest.resumed[0].at_s
    assert late_ms is not None
    assert client.lateness_max_ms is not None
    assert client.lateness_max_ms >= late_ms
    assert client.kernel_stamps == (sys.platform == "linux")
    assert run.requests["end_s"].max() == run.manifest.duration_s


def test_an_engine_that_came_back_is_asked_for_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    async def go() -> Manifest:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            def stop(state: ProgressState) -> None:
                if state.done >= 6 and not stopping:
                    stopping.append(asyncio.ensure_future(server.__aexit__(None, None, None)))

            stopping: list[asyncio.Future[None]] = []
            await run_workload(Examined(), workload(num_requests=40), folder, url=server.url, label="x", progress=stop)
            await stopping[0]
        assert load_run(folder).manifest.status == "failed"
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            return await resume_run(Examined(), folder, url=server.url)

    run = checked(folder, run_loop(go()))
    assert run.manifest.status == "complete"
    assert run.manifest.failure is None
    assert run.manifest.outcomes["ok"] == 40  # what broke as it died too


def test_an_engine_that_ended_in_good_order_is_asked_again() -> None:
    """It took no connection any more, and then ended its last answer."""
    def record(index: int, sent_s: float | None, end_s: float, error_kind: str | None = None) -> RequestRecord:
        return RequestRecord(f"r{index}", index, 0, sent_s or end_s, sent_s=sent_s, end_s=end_s,
                             outcome="ok" if error_kind is None else "error", error_kind=error_kind)

    records = [record(0, 0.0, 0.5, "reset"), record(1, 0.6, 1.0), record(2, None, 0.7, "connect"),
               record(3, None, 0.8, "connect"), record(4, 0.4, 0.9, "reset")]
    assert set(those_over(records, died=True)) == {0, 1}
    assert set(those_over(records, died=False)) == {0, 1, 2, 3, 4}


def of_blocks(number: int) -> Examined:
    kv = KVFacts(16, number, True, "paged")
    return Examined(EngineFacts("openai", "stub", 4096, capabilities=CAPABILITIES, kv=kv))


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=5, itl_ms=1)) as server:
            await broken_off(lambda note: run_workload(of_blocks(1000), workload(num_requests=40), folder,
                                                       url=server.url, label="x", progress=note), 4)
            other = Examined(EngineFacts("openai", "another", 4096, capabilities=CAPABILITIES))
            with pytest.raises(UsageError, match="this is another: model is 'another', was 'stub'"):
                await resume_run(other, folder, url=server.url)
            with pytest.raises(UsageError, match="this is another: kv is "):
                await resume_run(of_blocks(500), folder, url=server.url)
            # A new process of the same engine finds room for a few blocks more.
            await resume_run(of_blocks(1010), folder, url=server.url)
            with pytest.raises(UsageError, match="is complete: there is nothing to resume"):
                await resume_run(of_blocks(1000), folder, url=server.url)

    run_loop(go())


def test_the_command_goes_on_as_the_run_was_planned(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with fast_stub(tmp_path, ttft_ms=20, itl_ms=2) as stub:
        command = ["run", "--url", stub.url, "--resume", str(folder), "--quiet", "--json"]

        async def begin() -> None:
            examination = await examine(stub.url)
            await broken_off(lambda note: run_workload(
                examination, workload(prompt="text", num_requests=40), folder, url=stub.url, label="named",
                progress=note), 4)

        run_loop(begin())
        refused = CliRunner().invoke(app, [*command, "--users", "3", "--seed", "4", "--window", "1,2"])
        assert refused.exit_code == 2
        assert "leave out --seed, --users, --window" in refused.output
        done = CliRunner().invoke(app, [*command, "--workers", "2"])
    assert done.exit_code == 0, done.output
    run = load_run(folder)
    assert (run.manifest.label, run.manifest.workers, run.manifest.outcomes["ok"]) == ("named", 2, 40)
