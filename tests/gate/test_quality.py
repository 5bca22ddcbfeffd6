"""The noise of real runs: recorded, read back, judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pabench.analysis.measures import higher_is_better
from pabench.analysis.ratio import paired_ratio
from pabench.errors import UsageError
from pabench.gate import load_policy
from pabench.gate.quality import everywhere, main, read_noise, record_noise
from pabench.resources import data_dir
from tests.report.synthetic import Made, write_run

POLICY = load_policy()
RECORD = Path(__file__).resolve().parents[2] / "results/published/gate/noise-reference.csv"


def write_gate(folder: Path, slower: float = 1.0, pairs: int = 10) -> Path:
    """The run folders of a gate, each run with noise of its own."""
    for side, factor in (("baseline", 1.0), ("candidate", slower)):
        for seed in range(pairs):
            noise = 1 + 0.01 * ((7 * seed + 3 * (side == "candidate")) % 5 - 2)
            made = Made("engine", requests=16, seed=seed, slower=factor * noise)
            write_run(folder / side / f"{seed:03}", replace(made, started_at=f"2026-01-02T03:{seed:02}:00"))
    return folder


def test_what_is_recorded_is_read_back_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alike, slow = write_gate(tmp_path / "alike"), write_gate(tmp_path / "slow", 1.2)
    quick, shipped = tmp_path / "quick.toml", (data_dir("suites") / "gate.toml").read_text(encoding="utf-8")
    quick.write_text(shipped.replace("looks = [4, 8, 16, 32, 48]", "looks = [4, 8]"), encoding="utf-8")
    policy = load_policy(quick)
    assert record_noise(alike, policy, tmp_path / "alike.csv") == 10
    main(["record", str(slow), str(tmp_path / "slow.csv")])
    read = read_noise(tmp_path / "slow.csv", policy)
    assert read.num_pairs == 10
    ratios = read.figures["tpot_p50_ms"][:, 1] / read.figures["tpot_p50_ms"][:, 0]
    assert ratios.mean() == pytest.approx(1.2, abs=0.02)
    capsys.readouterr()
    main(["--policy", str(quick), "table", str(tmp_path / "alike.csv"), "--slowed", str(tmp_path / "slow.csv")])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    told = {(at, row[1]): row[2:6] for at, row in enumerate(rows)}
    assert told[1, "nothing (A/A)"] == ["20", "0", "20", "0"]
    assert told[7, "as measured, from anywhere in the record"] == ["10", "10", "0", "0"]


def test_runs_of_one_start_are_one_pair_of_the_record(tmp_path: Path) -> None:
    for side, factor in (("baseline", 1.0), ("candidate", 1.21)):
        for seed in range(6):
            slower = factor if seed % 2 else 1.0  # every other turn
            made = Made("engine", requests=16, seed=seed, engine_started_at=f"start {seed // 2}", slower=slower)
            write_run(tmp_path / side / f"{seed:03}", replace(made, started_at=f"2026-01-02T03:{seed:02}:00"))
    policy = POLICY.within(3)
    assert record_noise(tmp_path, policy, tmp_path / "noise.csv") == 3
    pairs = read_noise(tmp_path / "noise.csv", policy).figures["tpot_p50_ms"]
    assert (pairs[:, 1] / pairs[:, 0]).tolist() == pytest.approx([1.1] * 3, rel=0.01)  # of 1 and 1.21


def test_on_this_projects_record_it_finds_what_the_documentation_says() -> None:
    """From each of its 90 places either way round, as docs/gate.md has it: nothing, and the hardest slow-down there."""
    noise = read_noise(RECORD, POLICY)
    alike, pairs = everywhere(noise, POLICY, {})
    assert alike.total() == 2 * noise.num_pairs
    assert alike["REGRESSION"] <= 0.01 * alike.total()
    assert POLICY.looks[0] <= pairs <= POLICY.looks[-1]
    slower, _ = everywhere(noise, POLICY, {"tpot_p50_ms": 0.05})
    assert slower["REGRESSION"] >= 0.95 * slower.total()


@pytest.mark.parametrize("metric", ["throughput_tokens_per_s", "tpot_p50_ms", "ttft_p50_ms"])
def test_on_this_projects_records_it_finds_the_engine_that_really_was_slower(metric: str) -> None:
    """As it was, and with the figure scaled so that it is worse by just what matters."""
    noise = read_noise(RECORD.with_name(f"slowed-{metric.partition('_')[0]}.csv"), POLICY)
    baseline, candidate = noise.figures[metric].T
    ratio = paired_ratio(tuple(baseline), tuple(candidate)).ratio
    worse_by = POLICY.metrics[metric].worse_by
    scaled = 1 - (1 - worse_by) / ratio if higher_is_better(metric) else (1 + worse_by) / ratio - 1
    for worse in (0.0, scaled):
        found, _ = everywhere(noise, POLICY, {metric: worse}, swap=False)
        assert found.total() == noise.num_pairs
        assert found["REGRESSION"] >= 0.95 * found.total()


def test_too_few_pairs_are_no_record(tmp_path: Path) -> None:
    record_noise(write_gate(tmp_path / "few", pairs=2), POLICY, tmp_path / "few.csv")
    with pytest.raises(UsageError, match="holds 2 pairs, the policy asks for up to 48"):
        read_noise(tmp_path / "few.csv", POLICY)
