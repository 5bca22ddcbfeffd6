"""Single rows: a verdict rests on all seeds or all processes, says what it checked, and is that of the figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pabench.claims import DIFFERS, NOT_SHOWN, REPRODUCED, Bench, Result, claims_module, load_claims, show_claims

SEEDED = [claim.id for claim in load_claims() if claim.how == "simulated"]


def one(name: str, scale: float = 0.05) -> Result:
    results: list[Result] = []
    show_claims(load_claims([name]), results, scale=scale)
    return results[0]


def figures(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


# Rows whose figures hang on nothing but the seed, at a scale that is quick: verdict, then (place, low, high) of some
# figures in the text. All are sums, or means over hundreds of draws.
@pytest.mark.parametrize(("name", "scale", "verdict", "ranges"), [
    ("three-requests", 1, REPRODUCED, [(0, 5288, 5288), (4, 424, 424)]),
    ("four-requests", 1, REPRODUCED, [(0, 3692, 3692), (5, 620, 620)]),
    ("unused-share", 1, REPRODUCED, [(0, 72.2, 72.4)]),
    ("tail-bound", 1, REPRODUCED, [(1, 71, 71), (2, 127, 127)]),
    ("kv-bytes", 1, DIFFERS, [(0, 1.68, 1.68)]),
    ("many-users", 1, REPRODUCED, [(0, 9.84, 9.84)]),
    ("kv-heads", 1, REPRODUCED, [(2, 4, 4), (5, 8, 8)]),
    ("opt-bytes", 1, REPRODUCED, [(0, 800, 800), (2, 15_728, 15_728)]),
    ("opt-66b-slots", 1, NOT_SHOWN, [(0, 11_867, 11_867), (1, 2.25, 2.25)]),
    ("opt-175b-slots", 1, NOT_SHOWN, [(0, 61_459, 61_459), (1, 4.5, 4.5)]),
    ("buddy-chunks", 1, REPRODUCED, [(0, 7, 7), (1, 8.85, 8.85)]),
    ("fig11-moment", 1, REPRODUCED, [(0, 598, 598), (1, 296, 296)]),
    ("fig19-bound", 1, DIFFERS, [(1, 34, 35), (5, 300, 310), (7, 410, 420), (11, 600, 606)]),
    ("fig19-comparable", 1, DIFFERS, [(1, 3.0, 3.2), (3, 4.1, 4.2), (5, 5.0, 5.1)]),
    ("chunk-cost", 1, REPRODUCED, [(1, 14.0, 14.0), (2, 16.7, 16.7), (3, 18.1, 18.1), (5, 0, 0), (7, 3.6, 3.6)]),
    ("fig2-max", 0.25, REPRODUCED, [(0, 19, 23), (-1, 7, 7)]),
    ("fig2-oracle", 0.25, REPRODUCED, [(0, 36, 40), (7, 33, 38)]),
    ("fig15-samples", 0.25, DIFFERS, [(0, 1, 20)]),
    ("throughput-static", 0.05, DIFFERS, [(0, 5, 7)]),
    ("fig18b-alpaca", 1, REPRODUCED, []),
    ("block-size-tails", 0.2, REPRODUCED, [(1, 0, 0), (5, 0.5, 1.2), (-1, 18, 30)]),
    ("two-knobs", 1, REPRODUCED, []),
    ("out-of-blocks", 1, REPRODUCED, [(0, 12, 12), (3, 12, 12), (6, 12, 12)]),
])
def test_rows_that_chance_does_not_touch(
    name: str, scale: float, verdict: str, ranges: list[tuple[int, float, float]],
) -> None:
    result = one(name, scale)
    assert result.verdict == verdict, result
    found = figures(result.ours)
    assert [found[at] for at, low, high in ranges if not low <= found[at] <= high] == [], result.ours


@pytest.mark.parametrize("name", SEEDED)
def test_simulated_rows_are_of_five_seeds(name: str) -> None:
    result = one(name)
    assert result.verdict in (REPRODUCED, DIFFERS, NOT_SHOWN)
    assert "5 seeds" in result.why or "raise --scale" in result.why, result


@pytest.mark.parametrize(("times", "verdict", "inside"), [
    ([2.75, 2.63, 2.67, 2.70, 2.67], DIFFERS, "2 of them inside"),   # as an audit found them, seed by seed
    ([2.75, 2.73, 2.77, 2.70, 2.71], REPRODUCED, "5 of them inside"),
])
def test_a_ratio_that_is_inside_on_some_seeds_differs(
    monkeypatch: pytest.MonkeyPatch, times: list[float], verdict: str, inside: str,
) -> None:
    monkeypatch.setattr(claims_module("throughput"), "_ratios", lambda bench, reservation: times)
    result = one("throughput-max")
    assert (result.verdict, inside in result.why) == (verdict, True)
    assert "(2.63–2.75)" in result.ours or verdict == REPRODUCED


@pytest.mark.parametrize(("costs", "verdict"), [
    ((1.02, 1.03, 1.01, 1.04, 1.02, 1.03), REPRODUCED),
    ((1.03, 1.03, 1.01, 1.03, 1.02, 1.06), NOT_SHOWN),  # most are below 5 %
    ((1.09, 1.14, 1.11, 1.10, 1.08, 1.08), DIFFERS),
])
def test_a_look_up_is_cheap_where_all_of_the_interval_is(
    monkeypatch: pytest.MonkeyPatch, costs: tuple[float, ...], verdict: str,
) -> None:
    kernels = claims_module("kernels")
    left = list(costs)
    monkeypatch.setattr(kernels, "_process", lambda rounds: dict.fromkeys((1, 4, 16, 64, 256), left.pop()) | {1024: 1})
    result = one("look-up")
    assert (result.verdict, left) == (verdict, [])
    assert f"({min(costs) - 1:+.1%}–{max(costs) - 1:+.1%})" in result.ours
    assert ("holds 5 %" in result.why) == (min(costs) < 1.05 < max(costs))


@pytest.mark.parametrize(("small", "verdict"), [((1.06, 1.07), REPRODUCED), ((1.04, 1.08), DIFFERS),
                                                ((0.76, 1.06), DIFFERS)])
def test_small_blocks_are_slow_where_all_of_the_interval_is(
    monkeypatch: pytest.MonkeyPatch, small: tuple[float, float], verdict: str,
) -> None:
    left = [*small] * 3
    monkeypatch.setattr(claims_module("kernels"), "_process",
                        lambda rounds: dict.fromkeys((4, 16, 64, 256, 1024), 1.0) | {1: left.pop()})
    result = one("block-size-kernel")
    assert result.verdict == verdict
    assert f"({small[0]:.2f}–{small[1]:.2f})" in result.ours


def test_a_process_times_every_block_size() -> None:
    times = claims_module("kernels")._process(2)
    assert list(times) == [1, 4, 16, 64, 256, 1024]
    assert all(0 < seconds < 10 for seconds in times.values())


def test_figures_of_gpu_kernels_are_not_shown_by_those_of_a_cpu() -> None:
    rows = {claim.id: claim for claim in load_claims()}
    assert "20-26" in rows["look-up-gpu"].published
    assert "20-26" not in rows["look-up"].published
    assert one("look-up-gpu").verdict == NOT_SHOWN


def test_formulas_are_not_called_simulations() -> None:
    rows = {claim.id: claim for claim in load_claims()}
    assert {name for name, row in rows.items() if row.show.startswith("laws:")} == {
        "fig19-bound", "fig19-comparable", "chunk-cost"}
    assert all((row.how == "arithmetic") == row.show.startswith("laws:") for row in rows.values())


def test_what_is_quoted_of_figure_19_is_as_published() -> None:
    rows = {claim.id: claim for claim in load_claims()}
    assert rows["fig19-bound"].published == "never above 20 %"
    assert "of swap latency" in rows["fig19-bound"].claim
    assert "holds at 0 of 6 block sizes" in one("fig19-bound").why
    result = one("fig19-comparable")
    assert "32: " in result.ours
    assert "[" not in result.ours + one("fig19-bound").ours


@pytest.mark.parametrize(("used", "wide", "below_4"), [
    ({"contiguous": 0.29, "paged": 0.91}, REPRODUCED, DIFFERS),
    ({"contiguous": 0.29, "paged": 0.962}, DIFFERS, REPRODUCED),
    ({"contiguous": 0.45, "paged": 0.91}, DIFFERS, DIFFERS),
    ({"contiguous": float("nan"), "paged": float("nan")}, NOT_SHOWN, NOT_SHOWN),
])
def test_both_figures_of_waste_are_checked(
    monkeypatch: pytest.MonkeyPatch, used: dict[str, float], wide: str, below_4: str,
) -> None:
    monkeypatch.setattr(claims_module("layouts"), "_used", lambda bench: used)
    assert (one("utilisation").verdict, one("utilisation-4").verdict) == (wide, below_4)


def test_each_baseline_of_more_sequences_has_a_verdict_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"contiguous max": [1.0, 1.0], "contiguous pow2": [1.0, 1.2], "contiguous oracle": [1.3, 1.3],
            "paged": [2.3, 2.3]}
    monkeypatch.setattr(claims_module("layouts"), "_layouts",
                        lambda bench: {arm: {"sequences held": values} for arm, values in held.items()})
    assert [one(name).verdict for name in ("more-sequences", "more-sequences-pow2", "more-sequences-oracle")] == [
        REPRODUCED, DIFFERS, DIFFERS]


def test_seeds_draw_other_lengths_and_share_the_models(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scale=0.02)
    module = claims_module("simulations")
    seeds = list(module.seeded(bench))
    assert ([one.seed for one in seeds], all(one.memory is bench.memory for one in seeds)) == ([0, 1, 2, 3, 4], True)
    outcomes = {module.simulated(one, "ShareGPT", "paged").generated_tokens for one in seeds}
    assert len(outcomes) == 5
    assert module.simulated(seeds[1], "ShareGPT", "paged") is module.simulated(seeds[1], "ShareGPT", "paged")


CURVE = {1: 0.90, 8: 0.95, 16: 1.0, 32: 1.01, 64: 1.0, 128: 0.99, 256: 0.93}


@pytest.mark.parametrize(("name", "changes", "verdict"), [
    ("fig18b-sharegpt", {}, REPRODUCED),
    ("fig18b-sharegpt", {1: 0.995}, DIFFERS),  # as good as 128
    ("fig18b-sharegpt", {32: 0.94}, DIFFERS),
    ("fig18b-alpaca", {}, DIFFERS),
    ("fig18b-alpaca", {128: 0.9, 256: 0.8}, REPRODUCED),
    ("fig18b-alpaca", {128: 0.9, 256: 0.8, 32: 0.94}, DIFFERS),
    ("fig18b-alpaca", {128: 0.9, 256: 0.91}, DIFFERS),
])
def test_each_half_of_the_curve_over_block_sizes_is_checked_on_every_seed(
    monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[int, float], verdict: str,
) -> None:
    good = CURVE | ({} if name == "fig18b-sharegpt" else {128: 0.9, 256: 0.8})
    monkeypatch.setattr(claims_module("throughput"), "_by_block_size",
                        lambda bench, lengths: [good] * 4 + [CURVE | changes])
    assert one(name).verdict == verdict


@pytest.mark.parametrize(("most", "verdict"), [(30.5, REPRODUCED), (19.5, DIFFERS)])
def test_both_ends_of_sharing_on_sharegpt_are_checked(
    monkeypatch: pytest.MonkeyPatch, most: float, verdict: str,
) -> None:
    saved = {"Alpaca": {2: 6.0, 4: 8.5, 6: 9.8}, "ShareGPT": {2: 16.0, 4: 20.0, 6: most}}
    monkeypatch.setattr(claims_module("memory"), "_saved", lambda bench, lengths, n: saved[lengths][n])
    assert one("fig15-samples").verdict == verdict


def test_the_layouts_are_run_on_several_draws(tmp_path: Path) -> None:
    arms = claims_module("layouts")._layouts(Bench(tmp_path, scale=0.02))
    assert set(arms) == {"contiguous max", "contiguous pow2", "contiguous oracle", "paged"}
    assert {len(values) for figures in arms.values() for values in figures.values()} == {3}
    assert len(set(arms["paged"]["steps"])) > 1
