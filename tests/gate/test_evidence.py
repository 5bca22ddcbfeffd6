"""What fails a gate beside its figures, what leaves it in doubt, and what is no evidence."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pabench.analysis.compare import compare
from pabench.analysis.sides import Measured, read_run
from pabench.conformance.verdicts import Outcome, Verdict
from pabench.errors import UsageError
from pabench.gate import GateRun, Side, judge_folders, load_policy
from pabench.gate.evidence import more_lost, new_conformance_failures, zeroed
from pabench.gate.policy import MetricPolicy, Policy
from pabench.gate.words import advice, decision_json, decision_junit
from pabench.load import load_workload
from pabench.load.manifest import read_manifest
from tests.gate.test_stored import ENGINE, POLICY, sides, write_side
from tests.report.synthetic import write_run, write_suite

ALARM = 0.01


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return read_run(write_run(tmp_path_factory.mktemp("run") / "0", ENGINE))


def losing(run: Measured, *lost: int, client: int = 0, of: int = 48) -> list[Measured]:
    """A run of `of` requests for each number of lost ones, `client` of which the client's machine lost."""
    return [replace(run, summary=replace(run.summary, outcomes={"ok": of - each, "error": each}, client_faults=client))
            for each in lost]


def test_losses_that_come_in_more_than_one_run_fail(run: Measured) -> None:
    failures, doubts = more_lost(losing(run, 0, 0, 0, 0), losing(run, 4, 3, 5, 4), ALARM)
    assert failures == ["16 of 192 requests ended in an error or ran out of time, 0 of 192 on the baseline"]
    assert doubts == []


def test_one_run_that_lost_many_is_a_doubt(run: Measured) -> None:
    failures, (doubt,) = more_lost(losing(run, 0, 0, 0, 0), losing(run, 0, 8, 0, 0), ALARM)
    assert failures == []
    assert "in 1 of 4 runs" in doubt


def test_one_start_that_lost_many_in_each_of_its_turns_is_a_doubt(run: Measured) -> None:
    """Eight runs of 32 that lost some fail a gate, but not where they are the turns of one of four starts."""
    lost = losing(run, *[5] * 8 + [0] * 24)
    assert more_lost(losing(run, *[0] * 32), lost, ALARM)[0] != []
    starts = [[replace(one, manifest=one.manifest.model_copy(update={"engine_started_at": f"start {at // 8}"}))
               for at, one in enumerate(side)] for side in (losing(run, *[0] * 32), lost)]
    failures, (doubt,) = more_lost(*starts, ALARM)
    assert failures == []
    assert "in 1 of 4 runs" in doubt


def test_a_stall_now_and_then_is_a_doubt_and_losses_in_every_run_are_not(run: Measured) -> None:
    stalls = losing(run, *[8, 8, 8] + [0] * 29)
    failures, doubts = more_lost(losing(run, *[0] * 32), stalls, ALARM)
    assert (failures, len(doubts)) == ([], 1)
    assert more_lost(losing(run, 8, *[0] * 31), stalls, ALARM)[0] == []
    assert more_lost(losing(run, *[1] * 8), losing(run, *[5] * 8), ALARM)[0] != []


def test_few_runs_fail_where_all_of_them_lost_many(run: Measured) -> None:
    assert more_lost(losing(run, 0, 0), losing(run, 20, 22), ALARM)[0] != []
    for before, after in (((0,), (20,)), ((0, 3), (2, 20)), ((0, 0), (0, 20))):
        failures, (doubt,) = more_lost(losing(run, *before), losing(run, *after), ALARM)
        assert failures == []
        assert "too few runs to tell" in doubt


def test_errors_shared_among_all_that_may_come_are_one_whole() -> None:
    pairs = [*POLICY.looks, *(POLICY.looks[-1] << more for more in range(1, 21))]
    assert sum(1 / POLICY.shares_on_disk(each) for each in pairs) == pytest.approx(1, abs=1e-5)


def test_a_single_run_is_all_there_is(run: Measured) -> None:
    assert more_lost(losing(run, 0), losing(run, 48), ALARM)[0] == [
        "48 of 48 requests ended in an error or ran out of time, 0 of 48 on the baseline"]


def test_what_the_clients_machine_lost_is_nobodys(run: Measured) -> None:
    assert more_lost(losing(run, 0, 0), losing(run, 20, 20, client=20), ALARM) == ([], [])


def test_runs_that_lost_everything_fail_the_live_gate(
    run: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are INVALID, and their pairs are set aside; what they lost is counted all the same."""
    def measure(gate: GateRun, side: Side, number: int, *more: object) -> Measured:
        folder = gate.out / side.name / f"{number}"
        found = read_run(write_run(folder, replace(ENGINE, seed=number, label=side.name)))
        if side.name == "candidate" and number in (1, 2):
            (lost,) = losing(found, 24, of=24)
            return replace(lost, summary=replace(
                lost.summary, validity=replace(lost.summary.validity, valid=False, reasons=("no request succeeded",))))
        return found

    monkeypatch.setattr(GateRun, "_measure", measure)
    gate = GateRun((Side("baseline", "http://127.0.0.1:1"), Side("candidate", "http://127.0.0.1:2")),
                   load_workload("smoke"), load_policy(), tmp_path)
    found = gate.run()
    assert found.exit_code == 1
    assert found.failures == ("48 of 72 requests ended in an error or ran out of time, 0 of 72 on the baseline",)


def test_a_rate_that_is_0_on_the_candidate_alone_fails(run: Measured) -> None:
    policy = POLICY.model_copy(update={"metrics": {"prefix_hit_rate": MetricPolicy(worse_by=0.05)}})
    some, none = ([replace(run, summary=replace(run.summary, prefix_hit_rate=rate))] * 2 for rate in (0.4, 0.0))
    (failure,), doubts = zeroed(some, none, policy)
    assert failure.startswith("prefix_hit_rate is 0 in 2 of 2 runs of ")
    assert doubts == []
    assert zeroed(none, some, policy) == zeroed(none, none, policy) == ([], [])
    assert zeroed(some, [some[0], none[0]], policy)[0] == []
    assert len(zeroed(some, [some[0], none[0]], policy)[1]) == 1
    assert len(zeroed([some[0], none[0]], some, policy)[1]) == 1


def measured(run: Measured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rates: tuple[float, float],
             policy: Policy) -> GateRun:
    """A live gate whose runs are `run`, with prefix hits of so much: of the baseline, and of the candidate."""
    def measure(gate: GateRun, side: Side, number: int, *more: object) -> Measured:
        manifest = run.manifest.model_copy(update={"seed": number})
        rate = rates[side.name == "candidate"]
        return replace(run, manifest=manifest, summary=replace(run.summary, prefix_hit_rate=rate))

    monkeypatch.setattr(GateRun, "_measure", measure)
    return GateRun((Side("baseline", "http://127.0.0.1:1"), Side("candidate", "http://127.0.0.1:2")),
                   load_workload("smoke"), policy, tmp_path)


def test_a_rate_that_vanished_fails_a_live_gate_that_decides_by_nothing_else(
    run: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = POLICY.model_copy(update={"metrics": {"prefix_hit_rate": MetricPolicy(worse_by=0.05)}})
    found = measured(run, monkeypatch, tmp_path, (0.4, 0.0), policy).run()
    assert found.outcome == "REGRESSION"
    assert found.failures[0].startswith("prefix_hit_rate is 0 in 4 of 4 runs of ")


def test_what_conformance_left_open_no_pair_of_runs_tells(
    run: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = measured(run, monkeypatch, tmp_path, (0.4, 0.4), POLICY)
    write_suite(gate.out / "baseline" / "conformance", [Verdict("http/ring-exact", "", "MUST", Outcome.PASS)])
    write_suite(gate.out / "candidate" / "conformance", [Verdict("http/ring-exact", "", "MUST", Outcome.UNSUPPORTED)])
    gate.doubts = new_conformance_failures(gate.out / "baseline", gate.out / "candidate")[1]
    found = gate.run()
    assert (found.outcome, len(gate.runs[0])) == ("INCONCLUSIVE", POLICY.looks[0])
    assert advice(found).endswith("Have both asked for it: no pair of runs tells.")


def test_a_latency_that_was_0_is_a_doubt(run: Measured) -> None:
    """As where a proxy sent whole answers."""
    none, some = ([replace(run, summary=replace(run.summary, tpot_ms=replace(run.summary.tpot_ms, p50=p50)))] * 2
                  for p50 in (0.0, 12.0))
    failures, (doubt,) = zeroed(none, some, POLICY)
    assert failures == []
    assert doubt.startswith("tpot_p50_ms is 0 in 0 of 2 runs of ")


def test_a_figure_that_vanished_is_told_by_compare(
    tmp_path: Path, run: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path) -> list[Measured]:
        rate = 0.4 if folder.name == "before" else 0.0
        return [replace(run, summary=replace(run.summary, prefix_hit_rate=rate))]

    monkeypatch.setattr("pabench.analysis.compare.read_runs", read)
    told: list[str] = []
    found = compare([tmp_path / "before", tmp_path / "after"], ("request_rate_per_s", "prefix_hit_rate"), told.append)
    assert [each.metric for each in found] == ["request_rate_per_s"]
    assert told[0].startswith("after: prefix_hit_rate is 0 in 1 of 1 runs")


def test_a_run_is_no_evidence_against_itself(tmp_path: Path) -> None:
    base = write_side(tmp_path / "base", ENGINE)
    with pytest.raises(UsageError, match="6 runs are on both sides"):
        judge_folders(base, base, POLICY)


@pytest.mark.parametrize("other", [{"label": "another"}, {"version": "0.2.0"}])
def test_several_engines_are_no_side(tmp_path: Path, other: dict[str, str]) -> None:
    base, candidate = sides(tmp_path, ENGINE)
    shutil.rmtree(base / "3")
    write_run(base / "3", replace(ENGINE, seed=3, **other))
    with pytest.raises(UsageError, match="the baseline holds runs of several engines"):
        judge_folders(base, candidate, POLICY)


def test_a_few_blocks_more_or_less_are_one_engine(tmp_path: Path) -> None:
    base, candidate = sides(tmp_path, ENGINE)
    manifest = read_manifest(base / "3")
    assert manifest.engine.kv is not None
    manifest.engine.kv.num_blocks = 250
    manifest.write(base / "3")
    assert judge_folders(base, candidate, POLICY).outcome == "PASS"


def test_unlike_loads_are_refused_before_losses_are_judged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="different loads"):
        judge_folders(*sides(tmp_path, replace(ENGINE, users=4, errors=("boom",) * 8)), POLICY)


def test_conformance_is_compared_by_one_profile(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    write_suite(base / "conformance", [Verdict("http/ring-exact", "", "MUST", Outcome.PASS)])
    (path,) = (write_suite(same / "conformance", [Verdict("http/ring-exact", "", "MUST", Outcome.PASS)]),)
    results = path / "verdicts.jsonl"
    results.write_text(results.read_text().replace('"ci"', '"smoke"'))
    with pytest.raises(UsageError, match="profile ci, the candidate's with smoke"):
        judge_folders(base, same, POLICY)


def test_what_passed_and_is_asked_no_more_is_a_doubt(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    write_suite(base / "conformance", [Verdict("http/ring-exact", "", "MUST", Outcome.PASS)])
    write_suite(same / "conformance", [Verdict("http/ring-exact", "", "MUST", Outcome.UNSUPPORTED)])
    found = judge_folders(base, same, POLICY)
    assert (found.outcome, found.doubts) == ("INCONCLUSIVE", (
        "conformance: http/ring-exact passed on the baseline, and is UNSUPPORTED on the candidate",))
    suite = ElementTree.fromstring(decision_junit(found))
    assert suite.get("errors") == "1"


def test_a_case_that_fails_anew_is_not_hidden_by_one_that_failed_before(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    old = Verdict("http/preemption-exact", "rings", "MUST", Outcome.FAIL)
    write_suite(base / "conformance", [old, Verdict(old.requirement, "braids", "MUST", Outcome.PASS)], exit_code=1)
    write_suite(same / "conformance", [old, Verdict(old.requirement, "braids", "MUST", Outcome.CRASH)], exit_code=1)
    found = judge_folders(base, same, POLICY)
    assert found.failures == (
        "conformance: http/preemption-exact[braids] is a CRASH, it did not on the baseline",)
    write_suite(same / "another", [Verdict(old.requirement, "braids", "MUST", Outcome.PASS)])  # later in their order
    assert judge_folders(base, same, POLICY).failures == found.failures
    told = decision_json(replace(found, failures=("a path that is no UTF-8: \udcff",)))
    assert b"no UTF-8: ?" in told
