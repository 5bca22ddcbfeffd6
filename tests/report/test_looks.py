"""What a reader sees of a figure or a table: places on an axis, heads of columns, looks that differ."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np

from pabench.report import write_report
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


def test_looks_differ_past_the_last_colour() -> None:
    looks = [look(index) for index in range(3 * len(LOOKS))]
    assert looks[: len(LOOKS)] == list(LOOKS)
    for pair in combinations(("colour", "dash", "marker"), 2):
        assert len({tuple(getattr(each, name) for name in pair) for each in looks}) == len(looks), pair
    assert len({(each.svg_dash, each.svg_marker) for each in looks}) == len(looks)
