from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from pabench.analysis.slo import SLO
from pabench.capacity import Attained, Capacity, Search, conclusion, require_enough, search_capacity
from pabench.capacity_runs import CapacityRuns, attained_in, too_slow
from pabench.errors import UsageError
from pabench.load import Workload
from pabench.load.draws import NoArrivals
from pabench.load.manifest import ClientHealth
from pabench.load.workload import Bounds
from pabench.terminal.runs import tried_text
from tests.load.support import workload

SLO_90 = SLO(ttft_ms=500)


def searched(truth: float, seed: int = 0, **options: float) -> Capacity:
    """A search on an engine whose share in time falls from 1 to 0 around its capacity, 0.9 just there."""
    rng = np.random.default_rng(seed)

    def measure(rate: float, number: int) -> Attained:
        total = int(rng.poisson(rate * 60)) + 1
        share = 1 / (1 + (rate / truth) ** 12 / 9)
        return Attained(int(rng.binomial(total, share)), total)

    return search_capacity(measure, SLO_90, **({"from_rate": 0.5, "to_rate": 256.0} | options))


@pytest.mark.parametrize("truth", [0.7, 3.0, 17.0, 101.0])
def test_the_truth_lies_between_what_is_enough_and_what_is_too_much(truth: float) -> None:
    hits = 0
    for seed in range(40):
        found = searched(truth, seed)
        low, high = found.inside or 0.0, found.outside or np.inf
        assert low < high
        hits += low <= truth <= high
    assert hits >= 34  # each end is wrong once in forty tries of its rate, and some rates lie far off


def test_it_gets_as_near_as_it_is_asked_to() -> None:
    rates = sorted(each.rate_per_s for each in searched(17.0, precision=0.02).tried)
    assert min(after / before for before, after in pairwise(rates)) <= 1.02


def test_an_engine_that_is_fast_or_slow_enough_has_no_other_side() -> None:
    fast, slow = searched(1e6), searched(0.01)
    assert (fast.inside, fast.outside) == (256.0, None)
    assert "above 256 req/s" in fast.text
    assert slow.inside is None
    assert slow.outside == 0.5
    assert "below 0.5 req/s" in slow.text
    assert conclusion(slow.tried, "sessions/s").text.startswith("below 0.5 sessions/s")
    assert len(slow.tried) == 1


def test_what_is_undecided_is_tried_again_and_counted_together() -> None:
    asked: list[int] = []

    def measure(rate: float, number: int) -> Attained:
        asked.append(number)
        return Attained(9, 10)

    found = search_capacity(measure, SLO_90, from_rate=1, to_rate=1.5)
    assert asked == list(range(len(asked))), "no two runs of a search have one seed"
    assert found.tried[0].attained == Attained(27, 30)
    assert found.tried[0].verdict == "undecided"
    assert found.text.startswith("undecided")


def test_wilsons_interval() -> None:
    low, high = Attained(81, 263).interval(0.95)  # Newcombe 1998, table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def row(outcome: str = "ok", ttft_s: float = 0.1, tpot_s: float = 0.01, tokens: int = 10, kind: str | None = None
        ) -> dict[str, object]:
    return {"outcome": outcome, "error_kind": kind, "intended_s": 1.0, "first_s": 1.0 + ttft_s,
            "last_s": 1.0 + ttft_s + (tokens - 1) * tpot_s, "token_times_s": [0.0] * tokens, "n": 1}


def test_what_is_wrong_late_or_unanswered_is_not_in_time() -> None:
    rows = pd.DataFrame([row(), row(ttft_s=0.6), row(tpot_s=0.06), row("wrong"), row("error", kind="http"),
                         row("unsent", kind="duration"), row("aborted", kind="planned")])
    assert attained_in(rows, SLO(ttft_ms=500)) == Attained(2, 5)
    assert attained_in(rows, SLO(ttft_ms=500, tpot_ms=50)) == Attained(1, 5)


def test_a_search_for_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--ttft-ms"):
        SLO()
    with pytest.raises(UsageError, match="share inside"):
        SLO(ttft_ms=1, share=1.0)
    with pytest.raises(UsageError, match="bounds above 0"):
        SLO(ttft_ms=float("nan"))
    with pytest.raises(UsageError, match="from_rate < to_rate"):
        searched(1.0, from_rate=5, to_rate=2)


def test_a_client_that_is_late_itself_says_nothing_of_the_engine() -> None:
    rows = pd.DataFrame([row()])
    late = ClientHealth(lateness_p99_ms=24.0, loop_lag_p99_ms=24.0, cpu_share=0.5)
    assert too_slow(late, rows, SLO_90) is None
    assert "sends up to 26.0 ms late" in (too_slow(ClientHealth(lateness_p99_ms=26.0), rows, SLO_90) or "")
    assert "95% of a core" in (too_slow(ClientHealth(cpu_share=0.95), rows, SLO_90) or "")


def test_lag_below_the_gap_of_tokens_is_in_no_arrival_that_the_kernel_stamped() -> None:
    rows, slo = pd.DataFrame([row(tpot_s=0.010)]), SLO(ttft_ms=100, tpot_ms=50)
    assert "sees answers" in (too_slow(ClientHealth(loop_lag_p99_ms=8.0), rows, slo) or "")
    assert too_slow(ClientHealth(loop_lag_p99_ms=8.0, kernel_stamps=True), rows, slo) is None
    assert "sees answers" in (too_slow(ClientHealth(loop_lag_p99_ms=12.0, kernel_stamps=True), rows, slo) or "")


def test_an_engine_that_fails_most_requests_is_not_the_clients_fault() -> None:
    failed = row("timeout") | {"first_s": np.nan, "last_s": np.nan, "token_times_s": []}
    rows = pd.DataFrame([row(tokens=100)] * 4 + [failed] * 6)
    late = ClientHealth(lateness_p99_ms=3.0, loop_lag_p99_ms=3.0)
    assert too_slow(late, rows, SLO(tpot_ms=50)) is None
    assert too_slow(late, pd.DataFrame([failed] * 6), SLO(tpot_ms=50)) is None
    assert "sends" in (too_slow(late, rows, SLO(ttft_ms=50, tpot_ms=50)) or "")  # of TTFT, that it is late does count


@pytest.mark.parametrize(("tokens", "allowed_ms"), [(2, 2.0), (10, 18.0), (1000, 25.0)])
def test_lag_counts_by_the_gaps_that_share_it(tokens: int, allowed_ms: float) -> None:
    rows, slo = pd.DataFrame([row(tokens=tokens)]), SLO(ttft_ms=500, tpot_ms=40)
    assert too_slow(ClientHealth(loop_lag_p99_ms=allowed_ms - 0.1), rows, slo) is None
    assert "sees answers" in (too_slow(ClientHealth(loop_lag_p99_ms=allowed_ms + 0.1), rows, slo) or "")


def test_answers_of_one_token_are_in_no_gap_to_be_late_in() -> None:
    rows, slo = pd.DataFrame([row(tokens=1)]), SLO(ttft_ms=100)
    assert too_slow(ClientHealth(loop_lag_p99_ms=40.0, kernel_stamps=True), rows, slo) is None
    assert "sees answers" in (too_slow(ClientHealth(loop_lag_p99_ms=40.0), rows, slo) or "")


def test_too_few_requests_to_be_sure_of_any_share_are_refused() -> None:
    require_enough(SLO_90, from_rate=0.5, duration_s=30, tries=3)  # the defaults
    assert Attained(35, 35).interval(0.95)[0] >= 0.9 > Attained(34, 34).interval(0.95)[0]
    require_enough(SLO_90, from_rate=1, duration_s=35, tries=1)
    with pytest.raises(UsageError, match=r"fewer than 35 can never be .*raise --duration-s or --tries"):
        require_enough(SLO_90, from_rate=1, duration_s=34, tries=1)


def test_what_is_undecided_below_the_first_rate_outside_needs_longer_runs() -> None:
    def measure(rate: float, number: int) -> Attained:
        return Attained(20, 20) if rate < 2 else Attained(0, 20)

    found = search_capacity(measure, SLO_90, from_rate=1, to_rate=4, tries=1)
    assert found.inside is None
    assert found.outside == pytest.approx(2, rel=0.1)
    assert found.text.endswith("undecided below it: raise --duration-s or --tries")


def test_a_share_of_nearly_all_is_not_called_all() -> None:
    slo = SLO(ttft_ms=100, share=0.999)
    assert slo.text == "99.9% of requests with TTFT <= 100 ms"
    with pytest.raises(UsageError, match=r"surely inside 99\.9%"):
        require_enough(slo, from_rate=1, duration_s=34, tries=1)
    found = search_capacity(lambda rate, number: Attained(9987, 10000), slo, from_rate=1, to_rate=2, tries=1)
    assert "99.87% of 10000" in tried_text(found.tried[0])


def test_a_run_of_a_search_has_the_searchs_own_bounds_and_no_window_of_the_workloads(tmp_path: Path) -> None:
    plans: list[Workload] = []

    class Noted:
        def run(self, number: int, plan: Workload, folder: Path) -> None:
            plans.append(plan)
            raise NoArrivals("none")

    load = workload(arrivals={"kind": "poisson", "rate_per_s": 2.0}, window_s=[5.0, 60.0], slo={"tpot_ms": 9.0})
    runs = CapacityRuns(cast(Any, Noted()), load, SLO_90, tmp_path)
    assert runs(1.0, 0).total == 0
    assert (plans[0].window_s, plans[0].slo) == (None, Bounds(ttft_ms=500))


def test_a_search_without_a_run_is_written_too(tmp_path: Path) -> None:
    found = Search(label="x", workload="w", slo=SLO_90, confidence=0.95, finished=True, ended_by="",
                   capacity=conclusion([]))
    found.write(tmp_path / "new" / "one")
    assert (tmp_path / "new" / "one" / "capacity.json").exists()


def test_a_run_in_which_nothing_came_is_run_again_and_says_nothing() -> None:
    def measure(rate: float, number: int) -> Attained:
        return Attained(0, 0) if number < 3 else Attained(100, 100)

    found = search_capacity(measure, SLO_90, from_rate=1, to_rate=2, tries=3)
    assert [each.verdict for each in found.tried] == ["undecided", "inside"]


def test_what_is_undecided_above_the_highest_rate_inside_is_no_limit_found() -> None:
    def measure(rate: float, number: int) -> Attained:
        return Attained(100, 100) if rate < 2 else Attained(17, 20)

    found = search_capacity(measure, SLO_90, from_rate=1, to_rate=4, tries=1)
    assert found.outside is None
    assert "at least 1" in found.text
    assert "undecided above it" in found.text
