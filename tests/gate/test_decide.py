"""The decision, on samples by arithmetic: how often it errs, and what it says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pabench.analysis.sides import Samples
from pabench.errors import UsageError
from pabench.gate import Decision, Policy, decide, load_policy
from pabench.gate.quality import Noise, everywhere, in_turn, quality_table

ONE = Policy.model_validate({"metric": {"tpot_p50_ms": {"worse_by": 0.05}}, "looks": [8]})


def samples(ratio: float, spread: float, count: int, seed: int = 0, metric: str = "tpot_p50_ms") -> Samples:
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(2, 0.1, count))
    other = base * ratio * np.exp(rng.normal(0, spread, count))
    return Samples("load", metric, tuple(base), tuple(other), paired=True)


def noise(spread: float, pairs: int = 400, seed: int = 0) -> Noise:
    rng = np.random.default_rng(seed)
    figures = {}
    for name in load_policy().metrics:
        machine = np.cumsum(rng.normal(0, 0.01, pairs))[:, None]  # it drifts
        figures[name] = np.exp(3 + machine + rng.normal(0, spread / np.sqrt(2), (pairs, 2)))
    return Noise("made", figures)


def test_it_seldom_cries_wolf_and_seldom_misses() -> None:
    policy, made = load_policy(), noise(0.025, pairs=100)
    quiet, _ = everywhere(made, policy, {})
    assert quiet["REGRESSION"] <= 2
    found, _ = everywhere(made, policy, {"tpot_p50_ms": 0.05}, swap=False)
    assert found["REGRESSION"] >= 95
    assert found["PASS"] <= 5


def test_less_than_the_floor_is_none_however_sure() -> None:
    policy = Policy.model_validate({"metric": {"tpot_p50_ms": {"worse_by": 0.05, "floor": 0.05}}, "looks": [8]})
    base = tuple(0.4 + step / 10_000 for step in range(8))
    for more_ms, outcome in ((0.04, "PASS"), (0.06, "REGRESSION")):
        slower = Samples("load", "tpot_p50_ms", base, tuple(one + more_ms for one in base), paired=True)
        assert decide([slower], policy).outcome == outcome


def test_noise_makes_it_ask_for_more_and_not_guess() -> None:
    policy, loud = load_policy(), noise(0.4, pairs=50)
    for worse in ({}, {"tpot_p50_ms": 0.05}):
        outcomes, pairs = everywhere(loud, policy, worse, swap=False)
        assert outcomes["INCONCLUSIVE"] >= 45
        assert pairs > 15
    table = quality_table([noise(0.4, pairs=4)], [], policy.within(4))
    assert "| nothing (A/A) | 8 | 0 | 0 | 8 | 4.0 |" in table


def test_gates_one_after_the_other_use_every_pair_once() -> None:
    outcomes, pairs = in_turn(noise(0.02, pairs=40), load_policy())
    assert outcomes["PASS"] == outcomes.total() > 3
    assert outcomes.total() * pairs <= 40


@pytest.mark.parametrize(("ratio", "metric", "outcome"), [
    (1.00, "tpot_p50_ms", "PASS"), (0.90, "tpot_p50_ms", "PASS"), (1.10, "tpot_p50_ms", "REGRESSION"),
    (0.90, "throughput_tokens_per_s", "REGRESSION"), (1.10, "throughput_tokens_per_s", "PASS"),
])
def test_which_way_is_worse(ratio: float, metric: str, outcome: str) -> None:
    policy = Policy.model_validate({"metric": {metric: {"worse_by": 0.05}}, "looks": [8]})
    assert decide([samples(ratio, 0.01, 8, metric=metric)], policy).outcome == outcome


def test_a_sure_but_small_change_is_no_regression() -> None:
    found = decide([samples(1.01, 0.0005, 8)], ONE)
    assert (found.outcome, found.metrics[0].outcome) == ("PASS", "not worse")
    assert found.metrics[0].p < 0.001


def test_the_floor_forgives_what_is_too_small_to_matter() -> None:
    floored = Policy.model_validate({"metric": {"tpot_p50_ms": {"worse_by": 0.05, "floor": 2.0}}, "looks": [8]})
    slow = samples(1.10, 0.01, 8)  # of about 7 ms
    assert decide([slow], ONE).outcome == "REGRESSION"
    assert decide([slow], floored).outcome == "PASS"


def test_one_pair_says_how_many_more() -> None:
    found = decide([samples(1.5, 0.01, 1)], ONE)
    assert (found.outcome, found.exit_code, found.more) == ("INCONCLUSIVE", 3, 3)


def test_the_estimate_of_repeats_is_about_right() -> None:
    decided = Counter()
    for seed in range(40):
        open_one = decide([samples(1.0, 0.06, 4, seed)], ONE)
        if open_one.more is not None:
            decided[decide([samples(1.0, 0.06, 4 + open_one.more, seed)], ONE).outcome] += 1
    assert decided["INCONCLUSIVE"] <= decided.total() / 4


def test_failures_outweigh_all_figures() -> None:
    found = decide([samples(1.0, 0.001, 8)], ONE, failures=["3 wrong tokens"])
    assert (found.outcome, found.exit_code) == ("REGRESSION", 1)


def test_a_watched_figure_never_decides() -> None:
    found = decide([samples(1.0, 0.001, 8), samples(3.0, 0.001, 8, metric="itl_p99_ms")], ONE)
    assert (found.outcome, [each.outcome for each in found.metrics]) == ("PASS", ["not worse", "watched"])


def test_no_figure_to_decide_by_is_an_error_and_not_a_pass() -> None:
    with pytest.raises(UsageError, match="no run has a figure"):
        decide([samples(1.0, 0.01, 8, metric="itl_p99_ms")], ONE)
    assert Decision("PASS").exit_code == 0
