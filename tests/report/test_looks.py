"""What a reader sees of a figure or a table: places on an axis, heads of columns, looks that differ."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np

from pabench.load.manifest import read_manifest
from pabench.report import write_report
from pabench.report.figures import axis
from pabench.report.palette import LOOKS, look
from pabench.report.reduce import quantile_curve
from pabench.report.sources import read_sources
from pabench.report.view import make_page
from tests.report.synthetic import Made, write_run


def test_of_ten_requests_the_slowest_is_at_100_per_cent() -> None:
    stretch, shares, values = quantile_curve(np.arange(1.0, 11.0))
    assert values.tolist() == list(range(1, 11))
    assert np.allclose(shares, np.arange(1, 11) / 10)
    assert np.allclose(stretch[[4, 8, 9]], [2, 10, 20])  # at the ticks of 50 % and 90 %, and past them


def test_hover_texts_say_how_many_are_at_or_below(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("one", requests=10))
    (view,) = make_page(read_sources([tmp_path])).groups
    ttft = view.panes[0].feel[0].spec["data"][0]
    assert list(ttft["customdata"]) == [str(10 * place) for place in range(1, 11)]


def test_a_flipped_table_has_heads_of_columns(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_run(tmp_path / name, Made(name, requests=10))
    write_report([tmp_path], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = text[text.index('<table id="figures" class="flip">') :].split("</table>")[0]
    head, body = table.split("<tbody>")
    assert len(re.findall(r'<th scope="col">', head)) == 2
    assert re.findall(r'<th scope="row">\s*(\w+)', head) == ["Engine"]
    assert re.findall(r'<th scope="row">\s*(\w+)', body)[:2] == ["Workload", "Load"]
    first = re.findall(r"<tr>.*?</tr>", body, re.DOTALL)[0]
    assert first.count("probe-rings") == 2


def test_ticks_between_decades_are_whole_numbers() -> None:
    """By itself plotly writes a bare 2 for 200."""
    assert axis("ms", log=True)["tickformat"] == ",~r"


def test_looks_differ_past_the_last_colour() -> None:
    looks = [look(index) for index in range(3 * len(LOOKS))]
    assert looks[: len(LOOKS)] == list(LOOKS)
    for pair in combinations(("colour", "dash", "marker"), 2):
        assert len({tuple(getattr(each, name) for name in pair) for each in looks}) == len(looks), pair
    assert len({(each.svg_dash, each.svg_marker) for each in looks}) == len(looks)


def test_what_may_not_be_believed_says_so_before_its_figures(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("one", requests=10))
    write_run(tmp_path / "b", Made("other", requests=10, status="interrupted"))
    runs = make_page(read_sources([tmp_path])).runs
    assert runs is not None
    assert [column.key for column in runs.columns[:3]] == ["engine", "load", "valid"]
    assert runs.doubted == {1}
    write_report([tmp_path], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text[text.index('<table id="runs"') :].split("</table>")[0].count('<tr class="doubted">') == 1


def test_how_it_was_measured_is_told_by_engine_by_run_and_by_the_client(tmp_path: Path) -> None:
    for users in (2, 8):
        for name in ("one", "other"):
            folder = write_run(tmp_path / f"{name}{users}", Made(name, users=users, digest=f"{users}" * 64, requests=10,
                                                                 url=f"http://{name}:1",
                                                                 started_at=f"2026-01-02T03:0{users}:05.123456+00:00"))
            manifest = read_manifest(folder)
            manifest.client.loop_lag_p50_ms = 0.0571234 * users
            manifest.write(folder)
    page = make_page(read_sources([tmp_path]))
    by_engine, by_run, client = page.differing
    assert by_engine.flip
    assert "url" in [column.key for column in by_engine.columns]
    started = [column.key for column in by_run.columns].index("started_at")
    assert (by_run.rows[0][started].text, by_run.rows[0][started].raw) == (
        "2026-01-02 03:02:05 UTC", "2026-01-02T03:02:05.123456+00:00")
    digest = [column.key for column in by_run.columns].index("schedule_digest")
    assert (by_run.rows[0][digest].text, by_run.rows[0][digest].raw) == ("2" * 12 + "…", "2" * 64)
    assert not any(column.key.startswith("client") for column in by_run.columns)
    (lag,) = [column for column in client.columns if column.key == "client.loop_lag_p50_ms"]
    assert (lag.title, lag.unit, lag.numeric) == ("loop lag p50", "ms", True)
    assert client.rows[0][client.columns.index(lag)].text == "0.114"
    assert page.same is not None
    assert "8.00 GiB" in [row[1].text for row in page.same.rows]
