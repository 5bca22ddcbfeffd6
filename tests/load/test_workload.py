from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pabench.errors import UsageError
from pabench.load import known_workloads, load_workload, sweep_loads
from pabench.load.draws import draw_lengths


@pytest.mark.parametrize("name", sorted(known_workloads()))
def test_shipped_workloads_load_and_say_where_they_come_from(name: str) -> None:
    found = load_workload(name)
    assert found.name == name
    assert known_workloads()[name].read_text(encoding="utf-8").startswith("# ")


def test_unknown_workload_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown workload 'shargpt'.*sharegpt-mini, smoke"):
        load_workload("shargpt")


@pytest.mark.parametrize(("overrides", "message"), [
    ({"foo": 3}, "smoke.toml: foo: Extra inputs are not permitted"),
    ({"seed": -1}, "smoke.toml: seed: .*greater than or equal to 0.*got -1"),
    ({"seed": 2**63}, "smoke.toml: seed: .*less than or equal to 9223372036854775807"),
    ({"num_requests": True}, "smoke.toml: num_requests: "),
    ({"num_requests": 10**20}, "num_requests: .*less than or equal to 100000000"),
    ({"warmup_requests": 10**18}, "warmup_requests: .*less than or equal to"),
    ({"shared_prefix": {"tokens": 10**20}}, "shared_prefix.tokens: .*less than or equal to"),
    ({"output_tokens": {"law": "uniform", "max": 10**20}}, "output_tokens.max: .*less than or equal to"),
    ({"output_tokens": {"law": "gamma", "mean": 1, "shape": 1e-310}}, "output_tokens.shape: .*greater than or equal"),
    ({"arrivals": {"kind": "poisson", "rate_per_s": 1e13}}, "arrivals.rate_per_s: .*less than or equal to"),
    ({"trace": 5}, "smoke.toml: trace: .*valid string"),
    ({"output_tokens": {"law": "gamma", "mean": -1, "shape": 1}}, "output_tokens.mean: .*got -1"),
    ({"output_tokens": {"law": "uniform", "min": 9, "max": 3}}, "output_tokens: min 9 is above max 3"),
    ({"arrivals": {"kind": "poisson", "rate_per_s": 0}}, "arrivals.rate_per_s: .*got 0"),
    ({"arrivals": {"kind": "poisson", "rate_per_s": float("inf")}}, "arrivals.rate_per_s: .*finite"),
    ({"users": 2, "rate_per_s": 1.0}, "rate_per_s and users exclude each other"),
    ({"temperature": 1.5}, "certain of its tokens up to temperature 1"),
    ({"prompt": "fork"}, 'prompt "fork" needs temperature > 0'),
    ({"priorities": []}, "priorities: .*at least 1"),
    ({"priorities": [{"priority": 0, "share": 0.5}]}, "shares of priorities add up to 0.5, expected 1"),
    ({"priorities": [{"priority": 0, "share": 0.5}, {"priority": 0, "share": 0.5}]}, "a priority is named twice"),
    ({"priorities": [{"priority": 0.5, "share": 1.0}]}, r"priorities.0.priority: .*got 0.5"),
    ({"api": "chats"}, "api: .*'completions' or 'chat'.*got 'chats'"),
    ({"slo": {}}, "slo: give ttft_ms, tpot_ms, deadline_ms or several"),
    ({"slo": {"ttft_ms": 0}}, "slo.ttft_ms: .*got 0"),
    ({"window_s": [5.0, 5.0]}, r"window_s is \[5.0, 5.0\], expected a start"),
])
def test_bad_fields_are_named_in_one_line(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_workload("smoke", **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("law", "scale", "low", "high", "mean"), [
    ({"law": "uniform", "min": 100, "max": 1000}, 0.1, 10, 100, 55), ({"law": "uniform", "max": 100}, 4.0, 4, 400, 202),
    ({"law": "fixed", "tokens": 2_000_000}, 1.0, 2_000_000, 2_000_000, 2_000_000),
    ({"law": "exponential", "mean": 100.0, "min": 30, "max": 60}, 0.5, 30, 60, 43),
])
def test_scale_multiplies_a_law_and_cuts_none_that_has_no_bounds(
    law: dict[str, object], scale: float, low: int, high: int, mean: float
) -> None:
    workload = load_workload("smoke", output_tokens=law, scale=scale, num_requests=1)
    _, output, clipped = draw_lengths(workload, np.random.default_rng(1), 4000, None)
    assert (min(output), max(output), clipped) == (low, high, 0)
    assert np.mean(output) == pytest.approx(mean, rel=0.03)


def test_closed_arrivals_need_a_number_of_requests(tmp_path: Path) -> None:
    text = known_workloads()["poisson"].read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('{ kind = "poisson", rate_per_s = 4 }', '{ kind = "closed", users = 2 }'))
    with pytest.raises(UsageError, match="closed arrivals need num_requests"):
        load_workload(path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("prompt = = 3")
    with pytest.raises(UsageError, match=r"broken.toml: cannot be read as TOML"):
        load_workload(path)


def test_overrides_change_the_arrivals_and_none_leaves_them() -> None:
    assert load_workload("smoke", users=9).users == 9
    assert load_workload("smoke", users=None).users == 4
    poisson = load_workload("smoke", rate_per_s=3.0)
    assert (poisson.arrivals.kind, poisson.rate_per_s, poisson.users) == ("poisson", 3.0, None)
    assert load_workload("constant", rate_per_s=3.0).arrivals.kind == "constant"


def test_warm_up_has_as_many_streams_as_the_run() -> None:
    assert load_workload("smoke", users=9).warmups == 9
    assert load_workload("chat", rate_per_s=2.0).load_text == "2 sessions/s Poisson"
    assert load_workload("smoke", warmup_requests=0).warmups == 0


def test_sharegpt_mini_is_small_heavy_tailed_and_wastes_a_full_reservation() -> None:
    found = load_workload("sharegpt-mini")
    prompt, output, clipped = draw_lengths(found, np.random.default_rng(1), 20_000, 512)
    total = np.asarray(prompt) + np.asarray(output)
    assert clipped == 0
    assert total.max() == 480
    assert np.mean(prompt) == pytest.approx(48, abs=3)
    assert np.mean(output) == pytest.approx(96, abs=3)
    assert np.std(output) > 0.8 * np.mean(output)
    assert np.mean(total) / 512 < 0.35


def test_the_loads_of_a_sweep() -> None:
    assert sweep_loads("1,4", None) == [{"users": 1}, {"users": 4}]
    assert sweep_loads(None, "0.5, 2") == [{"rate_per_s": 0.5}, {"rate_per_s": 2.0}]
    for users, rates, message in ((None, None, "one of them"), ("1", "2", "one of them"), ("1,x", None, "--users is"),
                                  ("1.5", None, "--users is"), (None, "0", "--rates is"), ("2,2", None, "each once")):
        with pytest.raises(UsageError, match=message):
            sweep_loads(users, rates)
