"""What a run that goes on knows of the part before: where its tokens are gone, and what was over then."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pabench.errors import UsageError
from pabench.load import closing
from pabench.load.manifest import Resumption, new_manifest
from pabench.load.planning import plan
from pabench.load.records import RequestRecord, read_requests, read_telemetry, write_requests, write_telemetry
from pabench.load.replan import digest, replan, resumption, those_over
from pabench.load.window import steady_window
from pabench.load.worker import End
from pabench.telemetry.vocabulary import KVSample
from tests.load.support import Examined, workload


def record(index: int, sent_s: float | None, end_s: float | None = None, outcome: str = "ok", **more: object
           ) -> RequestRecord:
    at_s = float(index) if sent_s is None else sent_s
    first_s = None if sent_s is None or end_s is None else (sent_s + end_s) / 2
    return RequestRecord(f"r{index}", index, sent_s=sent_s, first_s=first_s, end_s=end_s, outcome=outcome,
                         **{"user": None, "intended_s": at_s, **more})


def broken_off_at(now_s: float, *, killed: bool = False) -> list[RequestRecord]:
    """An arrival a second, of which every second one takes 5 s, the others half a one."""
    records = []
    for index in range(20):
        end_s = index + (5.0 if index % 2 else 0.5)
        if end_s <= now_s:
            records.append(record(index, float(index), end_s))
        elif index <= now_s and not killed:
            records.append(record(index, float(index), now_s, "aborted", error_kind="interrupt"))
        else:
            records.append(record(index, None, outcome="unsent"))
    return records


@pytest.mark.parametrize("killed", [False, True])
def test_an_open_window_ends_where_the_first_came_of_those_sent_again(killed: bool) -> None:
    load = workload(num_requests=20, arrivals={"kind": "constant", "rate_per_s": 1})
    requests = plan(load, 0, Examined().facts, Examined().probe, "p").requests
    records = broken_off_at(9.6, killed=killed)
    over = those_over(records, died=False)
    assert sorted(over) == [0, 1, 2, 3, 4, 6, 8]
    went_on = resumption(records, over, [one for one in requests if one.index not in over], died=False)
    assert (went_on.at_s, went_on.again_s, went_on.died) == (8.5, 5.0, False)
    # Sent again at 8.5 s, and ended at once: the part before has the longer window.
    after = [over.get(one.index) or record(one.index, 8.5, 9.0) for one in records]
    window = steady_window(after, [went_on])
    assert window is not None
    assert window[1] == 5.0
    before = steady_window(after, [went_on.model_copy(update={"again_s": None})])  # as older runs have it
    assert before is not None
    assert before[1] == 8.0


def test_a_closed_window_ends_as_it_did() -> None:
    records = [record(index, index * 1.0, index + 1.0, user=0) for index in range(10)]
    for again_s in (None, 3.0):
        window = steady_window(records, [Resumption(at_s=10.0, shift_s=0.0, again_s=again_s)])
        assert window == (0.5, 10.0)


def test_what_is_yet_to_come_at_a_break_takes_nothing_from_the_window() -> None:
    """Nobody knows when its turn would have been, or it had not been due."""
    records = [record(0, 0.0, 2.0), record(1, None, outcome="unsent", intended_s=math.nan),
               record(2, None, outcome="unsent", intended_s=7.0)]
    assert resumption(records, {0: records[0]}, [], died=True) == Resumption(at_s=2.0, shift_s=0.0, died=True)
    assert Resumption.model_validate({"at_s": 2.0, "shift_s": 0.0}) == Resumption(at_s=2.0, shift_s=0.0)


def test_what_broke_as_the_engine_died_stays_to_be_sent_when_the_next_part_ends_before(tmp_path: Path) -> None:
    """A breaks at 10.0 s, B, sent at 9.0, ends in good order at 10.5; the resumed run ends before A is sent."""
    examined, load = Examined(), workload(num_requests=3)
    requests = plan(load, 0, examined.facts, examined.probe, "p").requests
    records = [record(0, 8.0, 10.0, "error", user=0, error_kind="reset"), record(1, 9.0, 10.5, user=1),
               record(2, None, outcome="unsent", user=0, error_kind="engine-died")]
    over = those_over(records, died=True)
    assert set(over) == {1}
    manifest = new_manifest(workload=load, seed=0, facts=examined.facts, probe_preset="tiny", label="x", url="http://h")
    manifest.resumed.append(resumption(records, over, requests[::2], died=True))
    manifest.status = "interrupted"
    write_requests(tmp_path, records)
    for _ in range(2):  # once more, as after a kill behind the tables
        closing.close_run(tmp_path, manifest, requests, examined.probe, End(unsent_kind="interrupt"))
        found = list(read_requests(tmp_path))
        assert [one.outcome for one in found] == ["unsent", "ok", "unsent"]
        assert set(those_over(found, died=False)) == {1}


def test_scrapes_behind_the_place_where_a_run_went_on_are_of_a_part_that_is_gone(tmp_path: Path) -> None:
    """Else what grew between one of them and the first new one would be taken for the run's."""
    examined, load = Examined(), workload(num_requests=3)
    requests = plan(load, 0, examined.facts, examined.probe, "p").requests
    manifest = new_manifest(workload=load, seed=0, facts=examined.facts, probe_preset="tiny", label="x", url="http://h")
    manifest.status, manifest.resumed = "interrupted", [Resumption(at_s=10.5, shift_s=0.0)]
    write_telemetry(tmp_path, [KVSample(float(at), running=1.0) for at in range(8, 14)])
    for _ in range(2):  # once more, as after a kill behind the tables
        closing.close_run(tmp_path, manifest, requests, examined.probe, End(unsent_kind="interrupt"))
        assert [sample.time_s for sample in read_telemetry(tmp_path)] == [8.0, 9.0, 10.0]


def test_a_run_of_a_trace_needs_that_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("prompt_tokens,output_tokens\n20,4\n30,5\n")
    traced = {"law": "trace"}
    load = workload(trace=str(trace), prompt_tokens=traced, output_tokens=traced, num_requests=2)
    manifest = new_manifest(workload=load, seed=0, facts=Examined().facts, probe_preset="tiny", label="x", url="http://h")
    planned = plan(load, 0, Examined().facts, Examined().probe, manifest.request_prefix, anew=False)
    manifest.schedule_digest = digest(planned)
    assert [one.prompt_tokens for one in replan(tmp_path, manifest)[0].requests] == [20, 30]
    trace.write_text("prompt_tokens,output_tokens\n20,4\n31,5\n")
    with pytest.raises(UsageError, match=r"use that version, and the trace .*trace\.csv as it was"):
        replan(tmp_path, manifest)
    trace.unlink()
    with pytest.raises(UsageError, match=r"trace\.csv, which is not there: go to the folder that the run was started"):
        replan(tmp_path, manifest)
