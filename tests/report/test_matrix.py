"""`pabench matrix`: results side by side, nothing hidden, nothing foreign alive."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pabench.conformance import Outcome, Verdict
from pabench.conformance.results import SPEC_VERSION
from pabench.errors import UsageError
from pabench.report.matrix_page import make_matrix, matrix_markdown, write_matrix
from tests.report.synthetic import FAILURE_TEXT, HOSTILE, failing_rows, passing_rows, write_suite
from tests.report.test_browser import Seen


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """A sound implementation in two results (two levels), one that fails, and one that fails as expected."""
    alloc = [Verdict("alloc/conservation", "", "MUST", Outcome.PASS)]
    expected = [replace(row, outcome=Outcome.XFAIL) if row.outcome is Outcome.FAIL else row for row in failing_rows()]
    http = write_suite(tmp_path / "http", passing_rows())
    return [f"ours={http}", f"ours={write_suite(tmp_path / 'alloc', alloc)}",
            f"acme={write_suite(tmp_path / 'acme', failing_rows(), exit_code=1)}",
            str(write_suite(tmp_path / "known", expected, engine={"dialect": "vllm", "version": "0.32"}))]


def test_requirements_by_level_and_implementations(three: list[str]) -> None:
    page = make_matrix(three)
    assert [engine.name for engine in page.engines] == ["ours", "acme", "vllm 0.32 (known)"]
    alloc, http = page.matrices
    assert [cell.text for cell in alloc.rows[0]] == ["alloc/conservation", "MUST", "PASS 1/1/1"]
    cells = {row[0].text: [cell.text for cell in row[2:]] for row in http.rows}
    assert cells["http/ring-exact"] == ["PASS 3/3/3"] * 3
    assert cells["http/shared-prefix-divergence"] == ["PASS 1/1/1", "FAIL 0/1/1", "XFAIL 0/1/1"]
    assert cells["http/n-samples-isolated"] == ["UNSUPPORTED 0/0/1"] * 3
    assert [answer.word for _, answer in page.conforming] == ["conforming", "not conforming", "conforming"]
    assert [cell.text for cell in page.results.rows[1]][:3] == ["ours", "http://127.0.0.1:8000", "ci"]
    assert page.not_asked is not None
    assert {row[3].text for row in page.not_asked.rows} == {"the engine takes no n"}


def test_a_cell_leads_to_its_failure(three: list[str]) -> None:
    page = make_matrix(three)
    row = next(row for row in page.matrices[1].rows if row[0].text == "http/shared-prefix-divergence")
    assert [cell.href for cell in row[2:]] == ["", "#failure-0", "#failure-1"]
    assert [(failure.id, failure.text, failure.tone) for failure in page.failures] == [
        ("failure-0", FAILURE_TEXT, "bad"), ("failure-1", FAILURE_TEXT, "muted")]


def test_part_of_a_requirement_shows_in_the_counts(tmp_path: Path) -> None:
    rows = [Verdict("http/abort-frees", "a", "MUST", Outcome.PASS),
            Verdict("http/abort-frees", "b", "MUST", Outcome.UNSUPPORTED, reason="no gauges")]
    (matrix,) = make_matrix([str(write_suite(tmp_path / "x", rows))]).matrices
    assert matrix.rows[0][2].text == "PASS 1/1/2"


def test_a_file_that_is_named_twice_counts_once(three: list[str], tmp_path: Path) -> None:
    def num_suites(*given: str) -> int:
        return sum(len(engine.suites) for engine in make_matrix(given).engines)

    acme = tmp_path / "acme"
    assert num_suites(str(acme), f"{acme}/../acme", str(acme / "verdicts.jsonl")) == 1
    assert num_suites(str(tmp_path)) == num_suites(str(tmp_path), str(acme)) == 4
    names = [engine.name for engine in make_matrix([str(tmp_path), f"theirs={acme}"]).engines]
    assert (len(names), names.count("theirs")) == (4, 1)


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "lr=0.1", passing_rows())
    for named, name in ((f"ours={suite}", "ours"), (f"a=b={tmp_path}", "a=b")):
        (engine,) = make_matrix([named]).engines
        assert engine.name == name
    with pytest.raises(UsageError, match=r"there is no none=0\.1"):
        make_matrix(["x=none=0.1"])


def test_what_cannot_stand_side_by_side_is_refused(three: list[str], tmp_path: Path) -> None:
    whole = tmp_path / "http" / "verdicts.jsonl"
    with pytest.raises(UsageError, match=r"both tell of http/ring-exact\[kB-1\] for 'ours': name them apart"):
        make_matrix([*three, f"ours={tmp_path / 'acme'}"])
    for name, text, complaint in (
        ("cut", "\n".join(whole.read_text().splitlines()[:-1]), "has no footer"),
        ("old", whole.read_text().replace(f'"spec_version": {SPEC_VERSION}', '"spec_version": 1'), "spec_version 1"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "verdicts.jsonl").write_text(text)
        with pytest.raises(UsageError, match=complaint):
            make_matrix([*three, str(tmp_path / name)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no verdicts\.jsonl"):
        make_matrix([str(tmp_path / "empty")])
    with pytest.raises(UsageError, match="there is no nowhere"):
        make_matrix(["x=nowhere"])
    with pytest.raises(UsageError, match="make it first"):
        write_matrix(three, out=None, markdown=tmp_path / "absent" / "matrix.md")


def test_a_column_of_an_older_suite_says_so_and_two_suites_are_refused(three: list[str], tmp_path: Path) -> None:
    now = f"now={write_suite(tmp_path / 'now', passing_rows(), suite='a')}"
    page = make_matrix([three[0], three[1], now])
    assert [column.title for column in page.matrices[0].columns[2:]] == ["ours"]  # of another level
    assert [column.title for column in page.matrices[1].columns[2:]] == ["ours (older suite)", "now"]
    assert "ours (older suite) | now |" in matrix_markdown(page)
    with pytest.raises(UsageError, match="are of different suites, with other cases of level http"):
        make_matrix([now, f"later={write_suite(tmp_path / 'later', passing_rows(), suite='b')}"])


def test_one_offline_file_without_script(three: list[str], tmp_path: Path) -> None:
    write_matrix(three, out=tmp_path / "m.html", markdown=tmp_path / "m.md")
    text = (tmp_path / "m.html").read_text()
    assert len(text) < 100_000
    assert "<script" not in text
    assert "script-src &#39;none&#39;" in text
    assert not re.search(r"<(link|img|iframe)[^>]+(src|href)=[\"'](?!data:)", text)
    assert (tmp_path / "m.md").read_text() == matrix_markdown(make_matrix(three))


def test_markdown_is_text_whatever_an_engine_said(tmp_path: Path) -> None:
    foreign = "a | b\n\n# head <img src=x> [l](javascript:x) `c` \u202e"
    rows = failing_rows(f"first\n\n</pre><img src=x>\n{foreign}")
    text = matrix_markdown(make_matrix([str(write_suite(tmp_path / "x", rows, engine={"label": foreign}))]))
    assert "<img" not in text
    assert "\u202e" not in text
    assert r"a \| b \# head &lt;img src=x&gt; \[l\](javascript:x) \`c\`" in text
    assert len([line for line in text.splitlines() if line.startswith("| http/")]) == 6 + 1  # one not asked
    block = text[text.index("<pre>") : text.index("</pre>")]
    assert "\n\n" not in block  # an empty line would end the block of HTML
    assert "&lt;/pre&gt;" in block


def test_markdown_links_and_names_nobody(tmp_path: Path) -> None:
    foreign = "https://example.org www.example.org @someone PR #12"
    rows = failing_rows(foreign)
    text = matrix_markdown(make_matrix([str(write_suite(tmp_path / "x", rows, engine={"label": foreign}))]))
    outside = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)  # where GitHub makes nothing of them
    assert "https:\u200b//example.org www\u200b.example.org @\u200bsomeone PR \\#\u200b12" in outside
    assert not re.search(r"://|www\.|@\w|#\d", outside)


def test_in_a_browser(browser: Any, three: list[str], tmp_path: Path) -> None:
    hostile = write_suite(tmp_path / "bad", failing_rows(HOSTILE), exit_code=1, engine={"label": HOSTILE})
    write_matrix([*three, str(hostile)], out=tmp_path / "m.html", markdown=None)
    tab = browser.new_context(viewport={"width": 400, "height": 900}, color_scheme="dark")
    seen = Seen(tab.new_page())
    seen.page.on("console", lambda message: seen.complaints.append(message.text))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto((tmp_path / "m.html").as_uri())
    assert seen.requests == [(tmp_path / "m.html").as_uri()]
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 23)"
    assert not seen.page.locator("#failure-0").is_visible()
    seen.page.click("a[href='#failure-0']")
    assert "copy it before the first write" in seen.page.locator("#failure-0").inner_text(timeout=5000)
    seen.page.click("a[href='#failure-2']")
    assert HOSTILE[:30] in seen.page.locator("#failure-2").inner_text(timeout=5000)
    assert seen.page.title().startswith("pabench matrix: ours")
    assert seen.complaints == []
    tab.close()
