"""Runs compared, exported and followed over time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pabench.analysis import load_run, summarise
from pabench.analysis.compare import compare
from pabench.analysis.compare_words import compared_markdown, compared_notes
from pabench.analysis.export import exported
from pabench.analysis.history import Point, find_steps, histories
from pabench.analysis.sides import read_all
from pabench.errors import UsageError
from pabench.load.records import RequestRecord, read_requests, write_requests
from tests.report.synthetic import HOSTILE, Made, write_run


def test_a_folder_of_before_columns_were_added_is_read(tmp_path: Path) -> None:
    path = write_run(tmp_path / "old", Made("one")) / "requests.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["priority", "asked_s"]), path)
    run = load_run(path.parent)
    assert run.requests["priority"].isna().all()
    lateness = summarise(run).lateness_ms  # from when the bytes left, which is all that it tells
    assert lateness is not None
    assert lateness.max == pytest.approx((run.requests["sent_s"] - run.requests["intended_s"]).max() * 1e3)
    assert summarise(run).ttft_ms_by_priority == {}
    pq.write_table(pq.read_table(path).drop_columns(["n"]), path)
    with pytest.raises(UsageError, match="has the columns"):
        load_run(path.parent)


DAMAGE: dict[str, Callable[[list[RequestRecord]], None]] = {
    "-1 times": lambda records: setattr(records[3], "token_times_s", None),
    "7 samples": lambda records: (setattr(records[3], "n", 2), setattr(records[3], "token_choices", [0] * 7))[0],
    "1 ids": lambda records: setattr(records[3], "token_ids", [5]),
}


@pytest.mark.parametrize("told", DAMAGE)
def test_a_damaged_run_is_told_in_a_line_and_hides_no_other(told: str, tmp_path: Path) -> None:
    bad = write_run(tmp_path / "bad", Made("bad"))
    write_run(tmp_path / "good", Made("good"))
    records = list(read_requests(bad))
    DAMAGE[told](records)
    write_requests(bad, records)
    with pytest.raises(UsageError, match=f"requests.parquet is damaged: row 3 .*{told}"):
        load_run(bad)
    runs, problems = read_all([tmp_path])
    assert ([run.manifest.label for run in runs], len(problems)) == (["good"], 1)


def test_a_column_of_another_type_is_told_in_a_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "bad", Made("bad")) / "requests.parquet"
    table = pq.read_table(path)
    at = table.schema.names.index("first_s")
    pq.write_table(table.set_column(at, "first_s", pa.array(["x"] * len(table))), path)
    with pytest.raises(UsageError, match="holds what is no table of ours"):
        load_run(path.parent)


@pytest.mark.parametrize("diagnosis", ["{}", "[1]", "not json"])
def test_a_diagnosis_that_cannot_be_read_is_told_as_such(diagnosis: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", Made("a"))
    records = list(read_requests(folder))
    records[0].diagnosis = diagnosis
    write_requests(folder, records)
    assert summarise(load_run(folder)).diagnoses == (f"{records[0].request_id}\nits diagnosis cannot be read",)


def test_a_manifest_with_parts_that_are_none_is_told_in_a_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", Made("a")) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unwatched": [99]}))
    with pytest.raises(UsageError, match=r"the unwatched parts are \[99\], expected some of 0 to 0"):
        load_run(path.parent)


def write_runs(folder: Path, label: str, seeds: range, **more: object) -> Path:
    for seed in seeds:
        write_run(folder / str(seed), Made(label, seed=seed, started_at=f"2026-01-02T03:{seed:02}:05+00:00", **more))  # type: ignore[arg-type]
    return folder


def test_slower_runs_are_told_from_equal_ones(tmp_path: Path) -> None:
    sides = [write_runs(tmp_path / name, name, range(5), slower=slower)
             for name, slower in (("one", 1.0), ("same", 1.0), ("slow", 1.1))]
    found = {(each.set_name, each.metric): each for each in compare(sides)}
    slow = found["slow", "tpot_p50_ms"]
    assert (slow.basis, slow.ratio) == ("pairs", pytest.approx(1.1, abs=0.01))
    assert slow.p is not None
    assert slow.p < 0.01
    assert found["same", "tpot_p50_ms"].ratio == pytest.approx(1.0)
    told = compared_markdown(list(found.values()), "one")
    assert f"×{slow.ratio:.3f} (" in told
    assert "\\*" in told
    assert "Holm" in " ".join(compared_notes(list(found.values())))


def test_one_run_a_side_has_intervals_of_its_own_and_no_p(tmp_path: Path) -> None:
    sides = [write_runs(tmp_path / name, name, range(1), slower=slower)
             for name, slower in (("one", 1.0), ("slow", 1.2))]
    (found,) = compare(sides, ["tpot_p50_ms"])
    assert (found.basis, found.p) == ("within", None)
    assert found.interval is not None
    assert found.interval[0] <= found.ratio <= found.interval[1]
    assert found.ratio == pytest.approx(1.2, abs=0.02)
    assert "one run a side" in compared_notes([found])[-1]


def test_engines_are_not_pooled_and_unlike_runs_are_named(tmp_path: Path) -> None:
    one, other = (write_runs(tmp_path / name, name, range(1)) for name in ("one", "other"))
    write_runs(tmp_path / "both" / "a", "one", range(1))
    write_runs(tmp_path / "both" / "b", "other", range(1))
    with pytest.raises(UsageError, match=r"both holds runs of several engines under .* \(one 0.1.0, .*, other 0.1.0, "):
        compare([one, tmp_path / "both"])
    notes: list[str] = []
    compare([one, other], note=notes.append)
    assert notes == []
    path = next(other.rglob("manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["host"]["cpu"] = "another"
    path.write_text(json.dumps(manifest))
    compare([one, other], note=notes.append)
    assert "from different machines" in notes[0]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one = write_runs(tmp_path / "one", "one", range(1))
    other = write_runs(tmp_path / "other", "other", range(1), users=4)
    with pytest.raises(UsageError, match="two folders or more"):
        compare([one])
    with pytest.raises(UsageError, match="no load was carried by the first and another"):
        compare([one, other])
    with pytest.raises(UsageError, match="unknown metric 'tpot'"):
        compare([one, one.parent / "one" / "0"], ["tpot"])


def test_csv_has_every_run_and_no_formula(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", "=cmd|' /C calc'!A0", range(2))
    rows = list(csv.DictReader(io.StringIO(exported([tmp_path], "csv"))))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert rows[0]["label"] == "'=cmd|' /C calc'!A0"
    assert float(rows[0]["tpot_p50_ms"]) > 0


def test_bencher_has_a_median_between_extremes(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", "engine", range(3))
    told = json.loads(exported([tmp_path], "bencher"))
    ((name, figures),) = told.items()
    assert name == "engine, probe-tiny, probe-rings, 8 users"
    tpot = figures["tpot_p50_ms"]
    assert tpot["lower_value"] <= tpot["value"] <= tpot["upper_value"]


def test_vllm_shape_agrees_with_the_records(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", "engine", range(1), errors=("boom",))
    told = json.loads(exported([tmp_path], "vllm"))
    assert (told["num_prompts"], told["completed"], told["failed"]) == (60, 59, 1)
    assert told["output_throughput"] == pytest.approx(told["total_output_tokens"] / told["duration"])
    assert len(told["ttfts"]) == len(told["itls"]) == 60
    assert len(told["itls"][5]) == told["output_lens"][5] - 1
    assert told["errors"][0] == "boom"
    assert told["median_tpot_ms"] > 0


def test_markdown_is_safe(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", HOSTILE, range(1))
    told = exported([tmp_path], "markdown")
    assert "<img" not in told
    assert len(told.splitlines()) == 3


def test_bencher_gets_no_run_that_is_invalid(tmp_path: Path) -> None:
    write_runs(tmp_path / "good", "engine", range(1))
    write_run(tmp_path / "bad", Made("engine", slower=9.0, status="interrupted"))
    (figures,) = json.loads(exported([tmp_path], "bencher")).values()
    assert figures["tpot_p50_ms"]["upper_value"] == figures["tpot_p50_ms"]["value"]
    with pytest.raises(UsageError, match="none of 1 runs is VALID"):
        exported([tmp_path / "bad"], "bencher")


def test_a_folder_opens_in_duckdb(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", "engine", range(2))
    found = duckdb.sql(f"SELECT outcome, count(*) FROM read_parquet('{tmp_path}/a/*/requests.parquet') GROUP BY 1")
    assert found.fetchall() == [("ok", 120)]


def test_what_cannot_be_read_is_told_beside_the_rest(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", "engine", range(2))
    (tmp_path / "a" / "1" / "requests.parquet").unlink()
    runs, problems = read_all([tmp_path])
    assert len(runs) == 1
    assert "requests.parquet is missing" in problems[0]
    with pytest.raises(UsageError, match="no run below"):
        read_all([tmp_path / "a" / "1"])


def points(values: np.ndarray) -> list[Point]:
    return [Point(f"2026-01-{day + 1:02}", f"v{day}", float(value), "") for day, value in enumerate(values)]


def test_a_step_is_found_where_it_is() -> None:
    rng, alone = np.random.default_rng(0), 0
    for _ in range(20):
        values = np.exp(rng.normal(0, 0.02, 24) + np.where(np.arange(24) >= 11, 0.15, 0.0))
        steps = find_steps(points(values), "tpot_p50_ms")
        (step,) = [each for each in steps if abs(int(each.after.version[1:]) - 11) <= 1]
        assert step.worse
        assert step.interval[0] <= 1.162 * 1.02
        alone += len(steps) == 1
    assert alone >= 18
    assert not find_steps(points(values), "throughput_tokens_per_s")[0].worse


def test_the_range_of_a_step_holds_its_cause() -> None:
    rng, found, missed = np.random.default_rng(3), 0, 0
    for _ in range(60):
        values = np.exp(rng.normal(0, 0.03, 24) + np.where(np.arange(24) >= 12, 0.05, 0.0))
        told = points(values)
        for step in find_steps(told, "tpot_p50_ms"):
            found, missed = found + 1, missed + (not told.index(step.first) < 12 <= told.index(step.last))
    assert found > 20
    assert missed <= 0.1 * found


def test_another_model_is_another_history(tmp_path: Path) -> None:
    for model, slower in (("8b", 1.0), ("70b", 2.0)):
        write_runs(tmp_path / model, "vllm", range(6), slower=slower)
        for path in (tmp_path / model).glob("*/manifest.json"):
            path.write_text(path.read_text().replace("probe-tiny", model))
    found = histories(read_all([tmp_path])[0], ["tpot_p50_ms"])
    assert sorted((each.label, len(each.points), each.steps) for each in found) == [
        ("vllm, 70b", 6, ()), ("vllm, 8b", 6, ())]


def test_noise_has_no_steps() -> None:
    rng = np.random.default_rng(1)
    cried = sum(bool(find_steps(points(np.exp(rng.normal(0, 0.03, 24))), "tpot_p50_ms")) for _ in range(200))
    assert cried <= 4


def test_another_machine_is_another_history(tmp_path: Path) -> None:
    write_runs(tmp_path / "old", "engine", range(6))
    write_runs(tmp_path / "new", "engine", range(10, 16), cores=8, slower=1.3)
    runs, _ = read_all([tmp_path])
    assert [(len(each.points), each.steps) for each in histories(runs, ["tpot_p50_ms"])] == [(6, ()), (6, ())]


def test_a_history_names_the_versions(tmp_path: Path) -> None:
    write_runs(tmp_path / "old", "engine", range(6), version="1.0")
    write_runs(tmp_path / "new", "engine", range(10, 16), version="1.1", slower=1.3)
    runs, _ = read_all([tmp_path])
    (found,) = histories(runs, ["tpot_p50_ms"])
    (step,) = found.steps
    assert "between 1.0 and 1.1" in step.text
    assert step.ratio == pytest.approx(1.3, abs=0.06)
