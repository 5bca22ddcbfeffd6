"""The report as text: what is decided, worded and escaped before any browser."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from pabench.claims import Claim, Result, write_claims
from pabench.errors import UsageError
from pabench.report import write_report
from pabench.report.build import json_in_html
from pabench.report.groups import sort_engines, sort_groups
from pabench.report.headline import memory_sentence, sentences, tiles
from pabench.report.reduce import MAX_QUANTILES, low_and_high, quantile_curve
from pabench.report.sources import read_sources
from pabench.report.tables import Column, table, words
from pabench.report.text import count, label, number, percent, ratio, visible
from pabench.report.view import make_page
from tests.report.synthetic import HOSTILE, Made, failing_rows, passing_rows, write_run, write_suite


def test_is_one_small_file(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert report.stat().st_size < 6_000_000
    assert "sourceMappingURL" not in text
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"'](?!data:)", text.split("<script")[0])
    assert "default-src &#39;none&#39;" in text


def test_nothing_to_show_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report on"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UsageError, match="is no folder"):
        write_report([tmp_path / "absent"], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_claims_alone_are_shown_and_once(tmp_path: Path) -> None:
    claim = Claim(id="one", claim="waste is small", source="a paper", published="2x", how="exact", show="a:b")
    (tmp_path / "a").mkdir()
    write_claims([Result(claim, "reproduced", "1x", "")], tmp_path / "a" / "claims.json")
    write_report([tmp_path, tmp_path / "a"], tmp_path / "report.html")
    assert "waste is small" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(read_sources([tmp_path, tmp_path / "a"]).claims) == 1


def test_an_impossible_out_is_refused_before_work(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        write_report([results], tmp_path)
    with pytest.raises(UsageError, match="make it first"):
        write_report([results], tmp_path / "absent" / "report.html")


def test_a_failed_write_leaves_the_old_file(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="No space left"):
        write_report([results / "paged" / "u02"], out)
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "good", Made("good", requests=20))
    broken = write_run(tmp_path / "broken", Made("broken", requests=20))
    (broken / "requests.parquet").unlink()
    cut = write_suite(tmp_path / "suite", passing_rows()) / "verdicts.jsonl"
    cut.write_text("\n".join(cut.read_text().splitlines()[:-1]) + "\n")
    page = make_page(read_sources([tmp_path]))
    assert [engine.name for engine in page.engines] == ["good"]
    assert len(page.problems) == 2
    assert any("requests.parquet is missing" in problem for problem in page.problems)
    assert any("no footer" in problem for problem in page.problems)


def test_a_run_named_twice_counts_once(results: Path) -> None:
    assert len(read_sources([results / "paged", results]).runs) == 7


def test_engines_come_in_the_order_they_ran(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("second", requests=10, started_at="2026-01-02T04:00:00+00:00"))
    write_run(tmp_path / "b", Made("first", requests=10, started_at="2026-01-02T03:00:00+00:00"))
    page = make_page(read_sources([tmp_path]))
    assert [engine.name for engine in page.engines] == ["first", "second"]


def test_a_conformance_result_finds_its_engine(results: Path, tmp_path: Path) -> None:
    by_place = {suite.place.split("/")[-2]: suite.label for suite in read_sources([results]).suites}
    assert by_place == {"paged": "reference paged", "contiguous": "reference contiguous"}
    lone = write_suite(tmp_path / "lone", passing_rows(), engine={"dialect": "vllm", "version": "0.32"})
    assert read_sources([lone]).suites[0].label == "vllm 0.32 (lone)"


def test_verdicts_say_why(results: Path) -> None:
    page = make_page(read_sources([results / "paged", results / "contiguous", results / "silent"]))
    states = {card.engine.name: [answer.state for answer in card.answers] for card in page.cards}
    assert states == {
        "reference paged": ["yes", "yes", "yes"],
        "reference contiguous": ["yes", "no", "no"],
        "silent engine": ["no", "yes", "open"],
    }
    silent = page.cards[2].answers[0]
    assert any("interrupted" in reason for reason in silent.reasons)


def test_the_matrix_counts_passed_asked_and_all(results: Path) -> None:
    page = make_page(read_sources([results / "paged", results / "contiguous"]))
    (matrix,) = page.matrices
    cells = {row[0].text: [cell.text for cell in row[2:]] for row in matrix.rows}
    assert cells["http/ring-exact"] == ["PASS 3/3/3"] * 2
    assert cells["http/shared-prefix-divergence"] == ["PASS 1/1/1", "FAIL 0/1/1"]
    assert cells["http/n-samples-isolated"] == ["UNSUPPORTED 0/0/1"] * 2
    assert [failure.name for failure in page.failures] == ["http/shared-prefix-divergence"]


def test_headline_numbers_come_from_the_summaries(results: Path) -> None:
    sources = read_sources([results / "paged", results / "contiguous"])
    (group,) = sort_groups(sort_engines(sources.runs, sources.suites))
    held = {tile.title: tile for tile in tiles(group)}["Sequences held, mean"]
    most = {engine.name: max(run.summary.mean_running or 0 for run in engine.runs) for engine in group.engines}
    assert held.factor == ratio(most["reference paged"] / most["reference contiguous"])
    assert held.winner == "as many with reference paged"
    assert any(s.startswith(f"reference paged holds {held.factor} the sequences") for s in sentences(tiles(group)))
    assert memory_sentence(group) == f"All had the same room for KV: {count(4096)} slots."


def test_an_invalid_run_stays_out_of_the_headline_or_is_marked(results: Path) -> None:
    sources = read_sources([results / "paged", results / "silent"])
    (group,) = sort_groups(sort_engines(sources.runs, ()))
    throughput = {tile.title: tile for tile in tiles(group)}["Throughput"]
    assert [bar.note for bar in throughput.bars] == ["", "not a valid, complete run"]


def test_lower_is_better_for_latency(results: Path) -> None:
    sources = read_sources([results / "paged", results / "contiguous"])
    (group,) = sort_groups(sort_engines(sources.runs, ()))
    summaries = {engine.name: group.at(engine, 24)[0].summary.ttft_ms for engine in group.engines}
    best = min(summaries, key=lambda name: summaries[name].p99)  # type: ignore[union-attr]
    ttft = {tile.title: tile for tile in tiles(group)}["TTFT p99"]
    assert ttft.winner == f"shorter with {best}"
    assert ttft.scope == "at 24 users"


def test_what_is_not_told_is_a_dash_with_a_title(report: Path, results: Path) -> None:
    page = make_page(read_sources([results / "silent"]))
    assert page.runs is not None
    keys = [column.key for column in page.runs.columns]
    cell = page.runs.rows[0][keys.index("kv_usage_mean_share")]
    assert (cell.text, cell.raw) == ("–", None)
    assert 'title="not told by this engine"' in report.read_text(encoding="utf-8")


def test_conformance_alone_makes_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite", failing_rows(), exit_code=1)
    out = tmp_path / "report.html"
    write_report([tmp_path], out)
    text = out.read_text(encoding="utf-8")
    assert text.count("No run was found") == 5
    assert "copy it before the first write" in text


def test_a_run_alone_makes_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("alone", requests=20))
    out = tmp_path / "report.html"
    write_report([tmp_path / "run"], out)
    text = out.read_text(encoding="utf-8")
    assert "No conformance result for alone" in text
    assert "Nothing to set side by side" in text


def test_a_run_without_a_single_answer_still_makes_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Made("dead", requests=4, users=2, errors=("gone",) * 4))
    assert folder.is_dir()
    page = make_page(read_sources([tmp_path]))
    assert page.cards[0].answers[0].state == "no"


def test_hostile_text_is_escaped_everywhere(hostile_report: Path) -> None:
    text = hostile_report.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert html.escape("<img src=x", quote=True) in text
    data = re.search(r'id="figure-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    assert "&lt;img src=x" in json.dumps(json.loads(data[1]))


def test_every_figure_is_a_plotly_figure_with_units(results: Path) -> None:
    page = make_page(read_sources([results]))
    figures = list(page.all_figures())
    assert len({figure.id for figure in figures}) == len(figures)
    for figure in figures:
        made = go.Figure(figure.spec)
        assert made.layout.xaxis.title.text
        assert figure.caption
        assert figure.alt.endswith(".")


def test_one_colour_an_engine_in_every_figure(results: Path) -> None:
    page = make_page(read_sources([results]))
    colours: dict[int, set[str]] = {}
    for figure in page.all_figures():
        for trace in figure.spec["data"]:
            if "engine" in trace.get("meta", {}):
                colours.setdefault(trace["meta"]["engine"], set()).add(trace["line"]["color"])
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 3


def test_a_search_for_the_capacity_is_shown_with_its_verdicts(searched: Path) -> None:
    (view,) = make_page(read_sources([searched])).groups
    assert view.capacity is not None
    rows = {row[0].text: [cell.raw for cell in row[1:4]] for row in view.capacity.rows}
    assert rows["reference paged"][0] <= 17.0 <= rows["reference paged"][1]
    assert str(rows["reference contiguous"][2]).startswith("broken off, so far: ")
    (tried,) = view.tried
    assert "90% of requests with TTFT <= 500 ms and TPOT <= 50 ms, Wilson's 95 % intervals" in tried.caption
    assert tried.csv.startswith(
        '"engine","rate_per_s","in_time_share","low_share","high_share","requests","verdict"\r\n')
    assert '"reference paged",1.0,1.0,0.91' in tried.csv
    figure = view.load[0]
    assert figure.id == "capacity-0-0"
    paged = figure.spec["data"][0]
    verdicts = {row[6].text for row in tried.rows}
    assert verdicts == {"inside", "outside", "undecided"}
    assert (paged["marker"]["symbol"][0], paged["marker"]["symbol"][-1]) == ("circle", "circle-open")
    made = go.Figure(figure.spec).data[0].error_y
    assert min(*made.array, *made.arrayminus) >= 0
    assert "reference paged: 16 req/s" in figure.alt


def test_searches_that_cannot_be_shown_are_told(searched: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("alone", requests=16))
    told = (searched / "a" / "capacity.json").read_text()
    for name, text in (("lone", told), ("newer", told.replace('"schema_version": 1', '"schema_version": 2')),
                       ("empty", re.sub(r'"tried": \[.*?\n    \]', '"tried": []', told, flags=re.DOTALL)),
                       ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "capacity.json").write_text(text)
    problems = make_page(read_sources([tmp_path])).problems
    assert len(problems) == 4
    assert any("reference paged under probe-rings: none of its runs is here" in problem for problem in problems)
    assert sum("cannot be read as a search of version 1" in problem for problem in problems) == 3


def test_json_cannot_close_its_script() -> None:
    text = str(json_in_html({"a": "</script><!--&\u2028"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028"}


def test_labels_are_cut_escaped_and_inert() -> None:
    assert label("<b>&\"'{x}") == "&lt;b&gt;&amp;\"'&#123;x&#125;"
    assert html.unescape(label("x" * 100)) == "x" * 47 + "…"
    assert "\u202e" not in visible(HOSTILE)
    assert visible("a\tb\r\nc\x1b[31m\ud800") == "a\tb\nc\ufffd[31m?"


def test_csv_disarms_formulas_and_keeps_numbers() -> None:
    made = table("t", "T", [Column("a", "A"), Column("b", "B"), Column("c", "C")],
                 [[words("=1+1"), replace(words("x"), raw=-0.1), words("")]])
    assert made.csv == '"a","b","c"\r\n"\'=1+1",-0.1,""\r\n'


@pytest.mark.parametrize(("value", "shown"), [
    (None, "–"), (float("nan"), "–"), (0, "0"), (0.01234, "0.0123"), (9.996, "10.00"), (1.2, "1.20"),
    (12345.6, "12\u202f346"), (-3.0, "-3.00"),
])
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [
    (1.0, "100"), (0.99999, "> 99.9"), (0.5, "50.0"), (0.0, "0"), (0.0001, "< 0.1"), (1.02, "102"),
])
def test_a_share_is_whole_only_where_it_is(value: float, shown: str) -> None:
    assert percent(value) == f"{shown}\u202f%"


def test_the_distribution_keeps_its_ends_and_invents_nothing() -> None:
    samples = np.random.default_rng(1).lognormal(size=50_000)
    stretch, shares, values = quantile_curve(samples)
    assert len(values) <= MAX_QUANTILES
    assert (values[0], values[-1]) == (samples.min(), samples.max())
    assert np.isin(values, samples).all()
    assert (np.diff(stretch) > 0).all()
    at_or_below = np.searchsorted(np.sort(samples), values, side="right") / len(samples)
    assert np.abs(shares - at_or_below).max() < 1e-9
    assert np.abs(1 - 1 / stretch - at_or_below)[:-1].max() < 1e-9


def test_a_long_series_keeps_its_peaks_and_dips() -> None:
    values = np.zeros(10_000)
    values[[123, 9_876]] = 7.0, -7.0
    times, kept = low_and_high(np.arange(10_000.0), values)
    assert len(kept) <= 240
    assert (kept.max(), kept.min()) == (7.0, -7.0)
    assert (np.diff(times) >= 0).all()
