"""Why a run is INVALID, and what of that ends a search."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pabench.analysis import summarise
from pabench.analysis.validity import _unmerged, moved_by_lag
from pabench.capacity_runs import unusable
from pabench.load.manifest import CacheCheck, ClientHealth, Resumption
from pabench.load.records import RequestRecord
from tests.analysis.by_hand import A, B, C, D, made
from tests.load.support import workload


@pytest.mark.parametrize(("fields", "reason", "ends_a_search"), [
    ({"status": "interrupted"}, "the run is interrupted", True),
    ({"status": "failed", "failure": "the engine died"}, "the run is failed: the engine died", True),
    ({"window_s": None}, "no steady window", False),
    ({"client": ClientHealth(cpu_share=0.95)}, "used 95% of a core", True),
    ({"client": ClientHealth(scrapes=3, failed_scrapes=2)}, "2 of 5 scrapes failed", False),
    ({"client": ClientHealth(scrapes=0, failed_scrapes=7)}, "7 of 7 scrapes failed", False),
    ({"client": ClientHealth(loop_lag_percentiles_ms=[50.0] * 101)}, "loop lag .* TTFT p50", False),
    ({"outcomes": {"ok": 1}}, "outcomes add up to 1, not to 2", True),
    ({"cache": CacheCheck(stated="cold", checked=2, broken="2 of 2 hit")}, "the cache was not cold, as stated: 2 of 2",
     True),
])
def test_a_run_is_invalid_for_a_reason(fields: dict[str, object], reason: str, ends_a_search: bool) -> None:
    one = RequestRecord("s", 1, 1, intended_s=0.0, sent_s=0.0, first_s=0.1, last_s=0.4, end_s=0.4, outcome="ok",
                        token_times_s=[0.1, 0.2, 0.3, 0.4], token_choices=[0] * 4)
    other = replace(one, request_id="t", index=0, user=0)
    assert summarise(made([one, other])).validity.valid
    validity = summarise(made([one, other], [], **fields)).validity
    assert not validity.valid
    assert any(re.search(reason, found) for found in validity.reasons)
    assert (unusable(validity) is not None) == ends_a_search


def test_a_load_of_which_nothing_succeeds_is_invalid_and_no_end_of_a_search() -> None:
    validity = summarise(made([replace(one, outcome="timeout") for one in (A, B)])).validity
    assert "no request succeeded" in validity.reasons
    assert unusable(validity) is None


@pytest.mark.parametrize(("usage", "told"), [(None, False), (100, False), (105, False), (106, True), (25, True)])
def test_usage_that_differs_from_the_ids_is_a_reason(usage: int | None, told: bool) -> None:
    one = replace(A, output_tokens=usage, stream_tokens=100, token_times_s=[0.1] * 100, token_choices=[0] * 100)
    for ids, expected in (([1] * 100, told), ([], False)):
        reasons = summarise(made([replace(one, token_ids=ids)])).validity.reasons
        assert any("usage tells" in reason for reason in reasons) == expected


def test_an_engine_without_kv_metrics_has_no_scrapes_to_miss() -> None:
    run = made([replace(A, sent_s=0.0), replace(B, sent_s=0.0)])
    bare = run.manifest.engine.model_copy(update={"capabilities": []})
    run.manifest.client = ClientHealth(scrapes=0, failed_scrapes=7)
    assert not summarise(run).validity.valid
    run.manifest.engine = bare
    assert summarise(run).validity.valid


def test_lateness_beyond_its_share_is_invalid() -> None:
    summary = summarise(made([A, B]))  # 10 and 20 ms late on TTFTs of 110 and 220 ms
    assert any("late sending" in reason for reason in summary.validity.reasons)


def test_lag_and_lateness_of_answers_that_came_whole_are_judged_by_their_ends() -> None:
    whole = [replace(one, first_s=None, last_s=None, token_times_s=[], token_choices=[]) for one in (A, B)]
    client = ClientHealth(loop_lag_percentiles_ms=[50.0] * 101, kernel_stamps=True)
    on_time = [replace(one, intended_s=one.sent_s or 0.0) for one in whole]  # 410 and 400 ms long
    assert summarise(made(on_time, window_s=(0.0, 0.8))).validity.valid
    lagging = summarise(made(on_time, window_s=(0.0, 0.8), client=client)).validity.reasons
    assert any("loop lag of the client moves the E2E p50" in reason for reason in lagging)
    late = summarise(made([replace(one, intended_s=-0.1) for one in whole], window_s=(0.0, 0.8))).validity.reasons
    assert any("late sending of the client moves the E2E from the intended start p50" in reason for reason in late)


def test_unsent_work_is_invalid_unless_the_workload_planned_it() -> None:
    def with_unsent(kind: str) -> tuple[str, ...]:
        unsent = RequestRecord("u", 2, 0, intended_s=float("nan"), error_kind=kind)
        return summarise(made([A, B, unsent])).validity.reasons

    assert any("1 of 3 requests were never sent" in reason for reason in with_unsent("engine-died"))
    assert not any("never sent" in reason for reason in with_unsent("duration"))


def test_lag_that_is_alike_for_all_arrivals_moves_ttft_and_not_itl() -> None:
    samples, lag = np.full(1000, 20.0), np.full(101, 3.0)
    assert moved_by_lag(samples, lag, 0.5, ends=1) == pytest.approx(3)
    assert moved_by_lag(samples, lag, 0.5, ends=2) == pytest.approx(0)
    rare = np.concatenate([np.zeros(99), [50.0, 50.0]])
    assert moved_by_lag(samples, rare, 0.5, ends=1) == pytest.approx(0)
    assert moved_by_lag(samples, rare, 0.99, ends=1) > 5


@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_what_lag_does_to_very_many_samples_is_told_by_some_of_them(quantile: float) -> None:
    rng = np.random.default_rng(1)
    lag = np.quantile(rng.exponential(2.0, 1000), np.linspace(0, 1, 101))
    few = rng.gamma(4, 5.0, 20_000)
    moved = moved_by_lag(few, lag, quantile, ends=1)
    assert moved > 1
    assert moved_by_lag(np.repeat(few, 100), lag, quantile, ends=1) == pytest.approx(moved, rel=0.1)


def test_lag_shows_in_arrivals_of_the_kernel_only_where_it_outlasts_the_gap() -> None:
    itl = np.full(100, 20.0)
    assert _unmerged(np.asarray([3.0, 19.0, 21.0]), itl).tolist() == [0.0, 0.0, 21.0]
    assert _unmerged(np.asarray([3.0]), np.empty(0)).tolist() == [0.0]


@pytest.mark.parametrize(("window_s", "told"), [
    ((0.0, 0.9), None), ((0.1, 0.92), None), ((0.0, 9.0), "the window ends at 9 s, the run at 0.9 s"),
    ((10.0, 20.0), "the window ends at 20 s"),
])
def test_a_window_without_a_load_is_invalid(window_s: tuple[float, float], told: str | None) -> None:
    run = made([A, B, C, D], window_s=window_s, workload=workload(num_requests=4, window_s=window_s))
    reasons = [reason for reason in summarise(run).validity.reasons if "window ends" in reason]
    assert [told in reason for reason in reasons] == [True] if told else reasons == []


def test_a_load_of_fewer_users_than_it_names_is_invalid() -> None:
    asked = workload(num_requests=4, arrivals={"kind": "closed", "users": 3})
    reasons = summarise(made([A, B, C, D], workload=asked)).validity.reasons
    assert "of 3 users 2 had something to ask: give it more requests" in reasons
    enough = workload(num_requests=4, arrivals={"kind": "closed", "users": 2})
    assert not any("had something" in why for why in summarise(made([A, B, C, D], workload=enough)).validity.reasons)


def test_a_window_over_a_break_is_invalid() -> None:
    window_s = (0.0, 0.9)
    run = made([A, B, C, D], window_s=window_s, workload=workload(num_requests=4, window_s=window_s),
               resumed=[Resumption(at_s=0.5, shift_s=0.0)])
    assert any("broken off at 0.5 s, in the window" in reason for reason in summarise(run).validity.reasons)


@pytest.mark.parametrize(("unwatched", "window_s", "told"), [
    ([0], (0.1, 0.4), True), ([0], (0.5, 0.8), False), ([1], (0.5, 0.8), True), ([], (0.1, 0.4), False),
])
def test_a_window_in_which_the_client_was_killed_is_invalid(
    unwatched: list[int], window_s: tuple[float, float], told: bool
) -> None:
    run = made([A, B, C, D], window_s=window_s, unwatched=unwatched, resumed=[Resumption(at_s=0.5, shift_s=0.0)])
    assert any("in a part of the window" in reason for reason in summarise(run).validity.reasons) == told


def test_latencies_of_a_time_that_nobody_watched_are_doubted() -> None:
    """A short window behind the break does not make up for them."""
    sent = [replace(one, sent_s=at, intended_s=at) for one, at in zip((A, B, C, D), (0.1, 0.2, 0.3, 0.6), strict=True)]
    run = made(sent, window_s=(0.55, 0.8), unwatched=[0], resumed=[Resumption(at_s=0.5, shift_s=0.0)])
    unseen = sum(one.outcome == "ok" for one in sent[:3])
    assert any(f"when {unseen} of " in reason for reason in summarise(run).validity.reasons)
