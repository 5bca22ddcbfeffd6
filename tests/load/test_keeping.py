"""Whatever ends a run, what was measured is kept: Ctrl-C, a kill, a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest

from pabench.analysis import load_run
from pabench.errors import EXIT_COULD_NOT_RUN, UsageError
from pabench.load import Manifest, RecordsUnwritable, journal, read_manifest, recover_run, run_workload
from pabench.load.connection import Exchange
from pabench.load.journal import Journal, Journaled, journal_path, journals_in
from pabench.load.records import RequestRecord, write_atomic, write_requests, write_telemetry
from pabench.load.settle import settle
from pabench.stub import StubOptions, StubServer
from pabench.telemetry.vocabulary import KVSample
from tests.load.support import Examined, workload

# A client as a process of its own: it can be signalled. Two users, 40 requests of about 0.15 s each.
CLIENT = """
import sys
from pathlib import Path
from pabench.load import run_loop, run_workload
from tests.load.support import Examined, workload
run_loop(run_workload(Examined(), workload(num_requests=40), Path(sys.argv[2]), url=sys.argv[1], label="x"))
"""


def signalled(folder: Path, number: int) -> int:
    """Run CLIENT against a stub, signal it in mid-run; its return code."""

    async def go() -> int:
        async with StubServer(StubOptions(ttft_ms=80, itl_ms=10)) as server:
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CLIENT, server.url, str(folder), stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
            deadline = time.monotonic() + 20
            while server.stub.generations < 8 and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            client.send_signal(number)
            return await client.wait()

    return asyncio.run(go())


def test_ctrl_c_writes_all_files_and_balances_the_books(tmp_path: Path) -> None:
    code = signalled(tmp_path / "run", signal.SIGINT)
    assert code in (-signal.SIGINT, 1, 130)
    run = load_run(tmp_path / "run")
    outcomes = run.manifest.outcomes
    assert run.manifest.status == "interrupted"
    assert outcomes["ok"] >= 4
    assert outcomes["aborted"] in (1, 2)
    assert outcomes["unsent"] > 20
    assert sum(outcomes.values()) == len(run.requests) == 40
    ended_badly = run.requests[run.requests["outcome"].isin(["aborted", "unsent"])]
    assert set(ended_badly["error_kind"]) == {"interrupt"}
    assert not journals_in(tmp_path / "run")


def test_a_killed_client_keeps_what_was_answered(tmp_path: Path) -> None:
    assert signalled(tmp_path / "run", signal.SIGKILL) == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["journal-0.bin", "journal-telemetry.bin",
                                                                          "manifest.json"]
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "interrupted"
    assert run.manifest.outcomes["ok"] >= 4
    assert run.manifest.outcomes["ok"] + run.manifest.outcomes["unsent"] == 40
    answered = run.requests[run.requests["outcome"] == "ok"]
    assert (answered["verified_tokens"] == 8).all()
    assert (answered["first_s"] - answered["sent_s"] >= 0.079).all()
    assert load_run(tmp_path / "run").manifest == run.manifest  # recovered once, for good


def test_what_a_kill_left_in_tables_and_journals_counts_once(tmp_path: Path) -> None:
    """The tables are written, the journals still there, and the manifest says that it runs."""
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=5, itl_ms=1)) as server:
            await run_workload(Examined(), workload(num_requests=4), tmp_path, url=server.url, label="x")

    asyncio.run(go())
    samples = [KVSample(0.1, kv_usage=0.5), KVSample(0.2, kv_usage=0.5)]
    write_telemetry(tmp_path, samples)
    left = Journal(journal_path(tmp_path, "telemetry"), 0.0)
    for sample in samples:
        left.add(sample)
    left.close()
    manifest = read_manifest(tmp_path)
    manifest.status = "running"
    manifest.write(tmp_path)
    run = load_run(tmp_path)
    assert run.telemetry["time_s"].tolist() == [0.1, 0.2]
    assert run.manifest.outcomes["ok"] == 4
    assert not journals_in(tmp_path)


def test_a_run_that_goes_on_is_not_recovered(tmp_path: Path) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=50, itl_ms=5)) as server:
            folder = tmp_path / "run"
            running = asyncio.create_task(
                run_workload(Examined(), workload(num_requests=8), folder, url=server.url, label="x"))
            while not journals_in(folder):
                await asyncio.sleep(0.01)
            with pytest.raises(UsageError, match="still going on"):
                recover_run(folder)
            assert (await running).status == "complete"

    asyncio.run(go())


def test_a_run_whose_answers_are_being_read_is_not_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pabench results list` may meet it: the journals are whole, and the tables not yet there."""
    folder, met = tmp_path / "run", []

    def settling(*arguments: Any, **options: Any) -> Iterator[RequestRecord]:
        for record in settle(*arguments, **options):
            with pytest.raises(UsageError, match="still going on"):
                load_run(folder)
            met.append(record.index)
            yield record

    monkeypatch.setattr("pabench.load.closing.settle", settling)

    async def go() -> Manifest:
        async with StubServer(StubOptions(ttft_ms=5, itl_ms=1)) as server:
            return await run_workload(Examined(), workload(num_requests=4), folder, url=server.url, label="x")

    assert asyncio.run(go()).status == "complete"
    assert len(met) == 4
    assert load_run(folder).manifest.outcomes["ok"] == 4


def fill_disk_after(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let the journal's disk be full after `num_bytes`, and everything else at once then."""
    left = [num_bytes]
    genuine = journal._write

    def write(file: BinaryIO, data: bytes) -> None:
        taken = min(len(data), left[0])
        left[0] -= taken
        genuine(file, data[:taken])
        if taken < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(_: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "_write", write)
    monkeypatch.setattr("pabench.load.records.os.fsync", refuse)


def test_a_full_disk_is_one_clear_error_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    async def go() -> Manifest:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=5)) as server:
            return await run_workload(Examined(), workload(num_requests=200), folder, url=server.url, label="x")

    begin = time.monotonic()
    with monkeypatch.context() as patch:
        fill_disk_after(patch, 12_000)
        with pytest.raises(RecordsUnwritable, match=r"No space left on device.*make room") as caught:
            asyncio.run(go())
    assert time.monotonic() - begin < 3
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == EXIT_COULD_NOT_RUN
    run = load_run(folder)
    assert run.manifest.status == "interrupted"
    assert 2 <= run.manifest.outcomes["ok"] < 100
    assert sum(run.manifest.outcomes.values()) == 200


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pabench.load.records.os.fsync", full)
    with pytest.raises(RecordsUnwritable):
        write_atomic(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_records_come_back_from_parquet_as_they_were(tmp_path: Path) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=5, itl_ms=1)) as server:
            await run_workload(Examined(), workload(num_requests=2), tmp_path, url=server.url, label="x")

    asyncio.run(go())
    record = RequestRecord(
        request_id="a", index=0, user=1, intended_s=0.0, sent_s=0.001, first_s=0.1, last_s=0.2, end_s=0.21,
        outcome="ok", http_status=200, prompt_tokens=9, max_tokens=2, output_tokens=2, stream_tokens=2,
        finish_reasons=["length"], token_times_s=[0.1, 0.2], token_choices=[0, 0], token_ids=[300, 301],
    )
    write_requests(tmp_path, [record, RequestRecord(request_id="b", index=1, user=None, intended_s=1.0)])
    write_telemetry(tmp_path, [KVSample(0.5, kv_usage=0.25, running=3.0)])
    run = load_run(tmp_path)
    first, second = run.requests.to_dict("records")
    assert (first["request_id"], first["outcome"], list(first["token_times_s"])) == ("a", "ok", [0.1, 0.2])
    assert (list(first["token_ids"]), list(first["finish_reasons"]), first["user"]) == ([300, 301], ["length"], 1)
    assert second["outcome"] == "unsent"
    assert run.requests["sent_s"].isna().tolist() == [False, True]
    assert run.telemetry["kv_usage"].tolist() == [0.25]
    assert run.telemetry["waiting"].isna().all()  # not told is not zero


def test_more_records_than_a_group_come_back_in_order(tmp_path: Path) -> None:
    made = (RequestRecord(request_id=str(i), index=i, user=None, intended_s=float(i), token_times_s=[i + 0.5])
            for i in range(10_000))
    write_requests(tmp_path, made)
    file = pq.ParquetFile(tmp_path / "requests.parquet")
    assert file.metadata.num_row_groups > 1
    table = file.read()
    assert table["index"].to_pylist() == list(range(10_000))
    assert table["token_times_s"].to_pylist()[9_999] == [9_999.5]


def test_what_the_journal_has_taken_over_comes_back(tmp_path: Path) -> None:
    """Times count from the run's start then."""
    written = Journal(journal_path(tmp_path, "0"), 100.0)
    for i in range(3):
        written.add(Exchange(i, 100.0, status=200, times_s=array("d", [101.0 + i, 102.0 + i]),
                             pieces=[b"a\n" * i, b"b"], reused=i == 1))
        written.add(KVSample(101.0))
    written.close()
    never_written = Exchange(9, 0.0, pieces=[b"x"])
    with Journaled(journals_in(tmp_path), [never_written]) as found:
        assert list(found.exchanges) == [9, 0, 1, 2]
        assert [sample.time_s for sample in found.samples] == [1.0] * 3
        assert [one.reused for one in found.exchanges.values()] == [False, False, True, False]
        for i in (2, 0, 1):
            back = found.whole(found.exchanges[i])
            assert back.times_s.tolist() == [1.0 + i, 2.0 + i]
            assert back.pieces == [b"a\n" * i, b"b"]
        assert found.whole(never_written) is never_written


def test_a_torn_journal_gives_its_whole_entries(tmp_path: Path) -> None:
    path = journal_path(tmp_path, "0")
    written = Journal(path, 100.0)
    exchange = Exchange(3, 100.5, sent_s=100.6, status=200, times_s=array("d", [101.0, 101.5]), pieces=[b"a\nb", b"\n"],
                        end_s=102.0)
    written.add(exchange)
    written.add(KVSample(101.25, kv_usage=0.5))
    written.add(Exchange(4, 101.0, status=200, times_s=array("d", [103.0]), pieces=[b"x" * 100], end_s=104.0))
    written.close()
    data = path.read_bytes()
    for length in range(len(data) - 1, len(data) - 150, -7):
        path.write_bytes(data[:length])
        with Journaled([path]) as found:
            assert list(found.exchanges) == [3]
            back = found.whole(found.exchanges[3])
            assert back.pieces == [b"a\nb", b"\n"]
            assert back.times_s.tolist() == [1.0, 1.5]
            assert (back.sent_s, back.end_s) == (pytest.approx(0.6), 2.0)
            assert [sample.time_s for sample in found.samples] == [1.25]
    for whole in (data, b""):
        path.write_bytes(whole)
        with Journaled([path]) as found:
            assert list(found.exchanges) == ([3, 4] if whole else [])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run folder: it holds no manifest.json"):
        load_run(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}')
    with pytest.raises(UsageError, match=r"manifest.json cannot be read as a manifest: .*version 99, .* up to 3"):
        load_run(tmp_path)


READER = """
import sys
from pathlib import Path
from pabench.load.journal import Journaled

def file_pages():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) << 10

before = most = file_pages()
with Journaled([Path(sys.argv[1])]) as found:
    for exchange in found.exchanges.values():
        assert len(found.whole(exchange).pieces) == 100
        most = max(most, file_pages())
print(most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's count of mapped pages")
def test_a_journal_that_is_read_stays_out_of_memory(tmp_path: Path) -> None:
    """160 MB of it, of which 16 MiB may be mapped at a time, and a little."""
    path = tmp_path / "journal-0.bin"
    kept = Journal(path, start_s=0.0)
    for index in range(1600):
        kept.add(Exchange(index, 0.0, times_s=array("d", range(100)), pieces=[b"x" * 1000] * 100))
    kept.close()
    assert path.stat().st_size > 160e6
    done = subprocess.run([sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert int(done.stdout) < 48 << 20
