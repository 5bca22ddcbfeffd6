"""The gate on runs from disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import orjson
import pytest

from pabench.analysis.measures import measure
from pabench.analysis.sides import read_runs
from pabench.conformance.verdicts import Outcome, Verdict
from pabench.errors import UsageError
from pabench.gate import judge_folders, load_policy
from pabench.gate.evidence import p_of_losses
from pabench.gate.policy import MetricPolicy, Policy
from pabench.gate.words import decision_junit, decision_markdown, decision_table, write_decision
from pabench.load.manifest import read_manifest
from tests.report.synthetic import HOSTILE, Made, write_run, write_suite

POLICY = load_policy()
ENGINE = Made("engine", requests=24)


def write_side(folder: Path, made: Made, seeds: range = range(6), minute: int = 0) -> Path:
    for seed in seeds:
        start = f"2026-01-02T03:{minute + 2 * seed:02}:00+00:00"
        write_run(folder / f"{seed}", replace(made, seed=seed, started_at=start))
    return folder


def sides(tmp_path: Path, candidate: Made, seeds: range = range(6), baseline: Made = ENGINE) -> tuple[Path, Path]:
    return (write_side(tmp_path / "baseline", baseline, seeds),
            write_side(tmp_path / "candidate", candidate, seeds, minute=1))


def test_alike_passes_and_slower_fails(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    slow = write_side(tmp_path / "slow", replace(ENGINE, slower=1.08), minute=1)
    assert judge_folders(base, same, POLICY).outcome == "PASS"
    found = judge_folders(base, slow, POLICY)
    assert (found.outcome, found.exit_code) == ("REGRESSION", 1)
    assert {each.metric for each in found.metrics if each.outcome == "worse"} >= {"tpot_p50_ms",
                                                                                 "throughput_tokens_per_s"}


def test_the_runs_of_one_start_are_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of one start differ by 20 %, which cancels; the candidate's three starts are slower by 10, 12 and 14 %."""
    factors = {"baseline": (1.0, 1.0, 1.0), "candidate": (1.10, 1.12, 1.14)}
    for minute, (side, by_start) in enumerate(factors.items()):
        for seed in range(6):
            turns = 1.2 if seed % 2 else 1.0
            made = replace(ENGINE, seed=seed, engine_started_at=f"start {seed // 2}",
                           slower=by_start[seed // 2] * turns,
                           started_at=f"2026-01-02T03:{minute + 2 * seed:02}:00+00:00")
            write_run(tmp_path / side / f"{seed}", made)
    counted: list[int] = []
    monkeypatch.setattr(Policy, "shares_on_disk", lambda policy, pairs: counted.append(pairs) or len(policy.looks) + 1)
    found = judge_folders(tmp_path / "baseline", tmp_path / "candidate", POLICY)
    assert counted == [3]  # so that more turns take no share of the errors
    (tpot,) = [each for each in found.metrics if each.metric == "tpot_p50_ms"]
    assert tpot.count == 3
    logs = [np.log([measure(run.summary, "tpot_p50_ms") for run in read_runs(tmp_path / side)]) for side in factors]
    by_start = (logs[1] - logs[0]).reshape(3, 2).mean(axis=1)
    half = 4.3027 * by_start.std(ddof=1) / np.sqrt(3)  # Student's t with 2 degrees, of three samples and not of six
    assert 1.1 < tpot.ratio == pytest.approx(np.exp(by_start.mean()))
    assert (tpot.low, tpot.high) == pytest.approx(tuple(np.exp(by_start.mean() + np.array([-half, half]))), rel=1e-4)


def test_wrong_tokens_always_fail(tmp_path: Path) -> None:
    base, wrong = sides(tmp_path, replace(ENGINE, wrong=1))
    found = judge_folders(base, wrong, POLICY)
    assert found.exit_code == 1
    assert "2 wrong tokens in 1 answers" in found.failures[0]


def test_more_errors_than_the_baseline_fail_and_as_many_do_not(tmp_path: Path) -> None:
    base, worse = sides(tmp_path, replace(ENGINE, errors=("boom", "boom")))
    assert "12 of 144 requests ended in an error" in judge_folders(base, worse, POLICY).failures[0]
    as_many = write_side(tmp_path / "as-many", replace(ENGINE, errors=("boom", "boom")), minute=40)
    assert judge_folders(worse, as_many, POLICY).failures == ()


def test_a_few_more_errors_may_be_chance_and_do_not_pass(tmp_path: Path) -> None:
    base, worse = sides(tmp_path, ENGINE)
    for seed in range(3):
        shutil.rmtree(worse / f"{seed}")
    write_side(worse, replace(ENGINE, errors=("boom",)), range(3), minute=1)
    found = judge_folders(base, worse, POLICY)
    assert (found.outcome, found.exit_code, found.failures) == ("INCONCLUSIVE", 3, ())
    assert "3 of 144 requests ended in an error or ran out of time, 0 of 144 on the baseline: so few" in found.notes[-1]


@pytest.mark.parametrize("share", [0.001, 0.005, 0.05])
def test_equal_engines_that_lose_requests_rarely_fail(share: float) -> None:
    """At four looks of 48 requests a run: at most the policy's false alarms, of 600 gates."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(600):
        lost = np.cumsum(rng.binomial(48, share, size=(2, POLICY.looks[-1])), axis=1)
        alarms += any(p_of_losses(lost[:, look - 1].tolist(), [48 * look] * 2) <= POLICY.false_alarm / len(POLICY.looks)
                      for look in POLICY.looks)
    assert alarms <= 13  # 6, and three standard deviations


def test_a_figure_that_no_run_has_is_noted(tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"metrics": POLICY.metrics | {"goodput_per_s": MetricPolicy(worse_by=0.05)}})
    found = judge_folders(*sides(tmp_path, ENGINE), policy)
    assert found.outcome == "PASS"
    assert "goodput_per_s decides by the policy, and no run of" in found.notes[-1]


def test_a_new_conformance_failure_fails_and_an_old_one_does_not(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    failing = [Verdict("http/ring-exact", "", "MUST", Outcome.FAIL),
               Verdict("http/usage-counts", "", "SHOULD", Outcome.FAIL)]
    write_suite(same / "conformance", failing, exit_code=1)
    assert judge_folders(base, same, POLICY).failures == (
        "conformance: http/ring-exact is a FAIL, the baseline was not asked",)
    write_suite(base / "conformance", failing, exit_code=1)
    assert judge_folders(base, same, POLICY).outcome == "PASS"
    write_suite(base / "conformance", [Verdict("http/ring-exact", "", "MUST", Outcome.NOTRUN)], exit_code=2)
    with pytest.raises(UsageError, match=r"the baseline's conformance could not be decided \(exit code 2\)"):
        judge_folders(base, same, POLICY)


def test_invalid_runs_are_refused(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    manifest = read_manifest(same / "3")
    manifest.client.cpu_share = 0.99
    manifest.write(same / "3")
    with pytest.raises(UsageError, match="INVALID, and a gate judges valid runs only: the client used 99%"):
        judge_folders(base, same, POLICY)


@pytest.mark.parametrize("partner", [True, False])
@pytest.mark.parametrize("status", ["interrupted", "complete"])
def test_the_last_pair_of_a_gate_that_was_broken_off_is_set_aside(tmp_path: Path, status: str, partner: bool) -> None:
    base, same = sides(tmp_path, ENGINE)
    whole = judge_folders(base, same, POLICY)
    last = replace(ENGINE, seed=6, slower=9.0, started_at="2026-01-02T03:13:00+00:00")
    write_run(same / "6", replace(last, status=status))
    if partner:
        write_run(base / "6", replace(last, started_at="2026-01-02T03:12:00+00:00"))
    found = judge_folders(base, same, POLICY)
    if partner and status == "complete":
        assert found.metrics[0].count == 7
        assert not any("set aside" in note for note in found.notes)
        return
    assert (found.outcome, found.metrics) == (whole.outcome, whole.metrics)
    why = "interrupted" if status == "interrupted" else "the other side has no run of its seed"
    assert found.notes[0].startswith("set aside, the last pair is not whole: ")
    assert found.notes[0].endswith(f"{same / '6'} ({why})")


def test_what_is_not_the_last_pair_is_not_set_aside(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    shutil.rmtree(same / "2")
    write_run(same / "2", replace(ENGINE, seed=2, status="interrupted", started_at="2026-01-02T03:05:00+00:00"))
    with pytest.raises(UsageError, match="INVALID, and a gate judges valid runs only: the run is interrupted"):
        judge_folders(base, same, POLICY)


def test_a_wrong_token_in_a_pair_that_is_set_aside_fails(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE)
    write_run(same / "6", replace(ENGINE, seed=6, wrong=1, started_at="2026-01-02T03:13:00+00:00"))
    found = judge_folders(base, same, POLICY)
    assert found.exit_code == 1
    assert "2 wrong tokens" in found.failures[0]


@pytest.mark.parametrize(("candidate", "told"), [
    (replace(ENGINE, users=4), "carried different loads"),
    (replace(ENGINE, requests=30), "not the same in all runs"),
    (replace(ENGINE, cpu="Another CPU"), "different machines"),
    (replace(ENGINE, digest="other"), "sent different requests"),
])
def test_like_is_compared_with_like(tmp_path: Path, candidate: Made, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        judge_folders(*sides(tmp_path, candidate, range(2)), POLICY)


def test_one_run_a_side_cannot_tell_and_says_so(tmp_path: Path) -> None:
    found = judge_folders(*sides(tmp_path, replace(ENGINE, slower=2.0), range(1)), POLICY)
    assert (found.outcome, found.exit_code, found.more) == ("INCONCLUSIVE", 3, 3)


def test_runs_that_took_no_turns_are_noted(tmp_path: Path) -> None:
    base = write_side(tmp_path / "base", ENGINE)
    later = write_side(tmp_path / "later", ENGINE, minute=40)
    assert "not interleaved" in judge_folders(base, later, POLICY).notes[0]


def test_other_seeds_are_compared_without_pairs(tmp_path: Path) -> None:
    base = write_side(tmp_path / "base", ENGINE, range(8))
    other = write_side(tmp_path / "other", ENGINE, range(10, 18))
    found = judge_folders(base, other, POLICY)
    assert found.outcome in ("PASS", "INCONCLUSIVE")
    assert found.metrics[0].count == 8


def test_every_form_says_the_same(tmp_path: Path) -> None:
    found = judge_folders(*sides(tmp_path, replace(ENGINE, slower=1.08)), POLICY)
    write_decision(found, tmp_path)
    told = orjson.loads((tmp_path / "gate.json").read_bytes())
    assert (told["outcome"], told["exit_code"]) == ("REGRESSION", 1)
    markdown = (tmp_path / "gate.md").read_text()
    assert markdown.startswith("## pabench gate: REGRESSION")
    assert "Worse: " in markdown
    suite = ElementTree.fromstring((tmp_path / "junit.xml").read_bytes())
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == [each.metric for each in found.metrics if each.outcome == "worse"]
    assert suite.get("failures") == str(len(failed))
    assert decision_table(found).row_count == len(found.metrics)


def test_hostile_failures_are_shown_and_not_followed(tmp_path: Path) -> None:
    base, same = sides(tmp_path, ENGINE, range(2))
    manifest = read_manifest(same / "1")
    manifest.status, manifest.failure = "failed", HOSTILE + "\x1b[2J| ![x](http://127.0.0.1/x.png)"
    manifest.write(same / "1")
    found = judge_folders(base, same, POLICY)
    markdown = decision_markdown(found)
    assert "<img" not in markdown
    assert "\x1b" not in markdown
    assert "![x]" not in markdown
    assert ElementTree.fromstring(decision_junit(found)).get("failures") == "1"
