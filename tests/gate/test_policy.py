"""Policies from files: what is wrong in one is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.errors import UsageError
from pabench.gate import load_policy

GOOD = "[metric.tpot_p50_ms]\nworse_by = 0.05\n"


def test_the_one_that_ships_is_sound() -> None:
    policy = load_policy()
    assert set(policy.metrics) == {"throughput_tokens_per_s", "tpot_p50_ms", "ttft_p50_ms"}
    assert policy.within(6).looks == (4, 6)
    assert policy.within(40).looks == (4, 8, 16, 32, 40)
    assert policy.within(None).looks == (4, 8, 16, 32, 48)


@pytest.mark.parametrize(("text", "told"), [
    ("", "metric: Field required"),
    ("false_alarm = 2\n" + GOOD, "false_alarm: Input should be less than 0.5"),
    ("[metric.tpot]\nworse_by = 0.05\n", "unknown metric 'tpot'"),
    ("looks = [8, 4]\n" + GOOD, "rising numbers of pairs from 2 on"),
    ("looks = [1]\n" + GOOD, "rising numbers of pairs from 2 on"),
    (GOOD + "[watch]\nmetrics = ['tpot_p50_ms']\n", "decided by and only watched"),
    ("[metric.tpot_p50_ms]\nworse = 1\n", "worse: Extra inputs are not permitted"),
    (GOOD + "floor = inf\n", "floor: Input should be a finite number"),
    ("[", "cannot be read as TOML"),
])
def test_what_is_wrong_is_said(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"gate\.toml") as error:
        load_policy(path)
    assert told in str(error.value)


def test_a_budget_of_one_pair_is_refused() -> None:
    with pytest.raises(UsageError, match="expected 2 or more"):
        load_policy().within(1)
