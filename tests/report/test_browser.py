"""The report in a browser: nothing leaves it, nothing foreign runs in it, every control works."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from pabench.analysis import load_run, summarise
from pabench.analysis.history import histories
from pabench.analysis.sides import read_all
from pabench.report import write_report
from pabench.report.history_page import write_history
from tests.report.pages import Seen, drawn, open_report, settle
from tests.report.synthetic import HOSTILE, Made, write_run

SECTIONS = ("verdicts", "comparison", "load", "feel", "memory", "correctness", "claims", "method")


@pytest.fixture
def seen(browser: Any, report: Path) -> Iterator[Seen]:
    """A page whose figures are still being drawn."""
    yield from open_report(browser, report)


@pytest.fixture(scope="module")
def shared(browser: Any, report: Path) -> Iterator[Seen]:
    """One page for the tests that only look, or leave it as it was."""
    for seen in open_report(browser, report):
        settle(seen)
        yield seen


def test_opens_from_disk_without_a_complaint_or_a_request(shared: Seen, report: Path) -> None:
    shared.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    shared.page.wait_for_timeout(200)
    assert shared.complaints == []
    # Plotly's own buttons hold data: pictures; nothing else may be asked for.
    assert [url for url in shared.requests if not url.startswith(("data:", "blob:"))] == [report.as_uri()]


def test_the_page_answers_before_all_figures_are_drawn(seen: Seen) -> None:
    to_come = """() => [...document.querySelectorAll('.plot')]
        .filter(p => p.offsetParent && !p.querySelector('.main-svg')).length"""
    height = seen.page.evaluate("document.documentElement.scrollHeight")
    assert seen.page.evaluate(to_come) > 0
    settle(seen)
    assert seen.page.evaluate(to_come) == 0
    assert abs(seen.page.evaluate("document.documentElement.scrollHeight") - height) < 20, "what is read has moved"


def test_the_policy_lets_nothing_out(seen: Seen) -> None:
    outcome = seen.page.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => 'sent', error => 'refused: ' + error.name)")
    assert outcome.startswith("refused")
    assert any("Content Security Policy" in complaint for complaint in seen.complaints)


def test_every_section_is_there_with_a_heading(shared: Seen) -> None:
    for section in SECTIONS:
        assert shared.page.locator(f"section#{section} > h2").count() == 1
    assert shared.page.locator("h1").count() == shared.page.locator("main").count() == 1


def test_every_figure_in_sight_is_drawn_and_has_words(shared: Seen) -> None:
    states = shared.page.evaluate(
        """() => [...document.querySelectorAll('.plot')].filter(p => p.offsetParent)
            .map(p => [p.id, p.querySelectorAll('svg.main-svg').length, p.getAttribute('aria-label').length])""")
    assert len(states) >= 12
    assert all(svgs > 0 and words > 20 for _, svgs, words in states), states


def test_no_width_scrolls_sideways(shared: Seen) -> None:
    too_wide = """() => [document.documentElement.scrollWidth > innerWidth,
        ...[...document.querySelectorAll('figure')].filter(f => f.offsetParent
            && f.querySelector('.main-svg').getBoundingClientRect().right > innerWidth)].filter(Boolean).length"""
    for width in (400, 768, 1280):
        shared.page.set_viewport_size({"width": width, "height": 900})
        for _ in range(40):  # plotly follows a new size after a moment, on a busy machine a long one
            shared.page.wait_for_timeout(250)
            if shared.page.evaluate(too_wide) == 0:
                break
        assert shared.page.evaluate(too_wide) == 0, width


def test_texts_of_figures_can_be_read_at_every_width(shared: Seen) -> None:
    """None is drawn smaller than 9 px, and no legend scrolls over what it explains."""
    hard = """() => [...document.querySelectorAll('.plot')].filter(p => p.offsetParent).flatMap(plot => [
        ...[...plot.querySelectorAll('text')].filter(t => t.textContent && t.getClientRects().length)
            .map(t => [t, parseFloat(getComputedStyle(t).fontSize) * (t.getCTM()?.a || 1)])
            .filter(([, size]) => size < 9).map(([t, size]) => `${plot.id}: ${t.textContent} of ${size} px`),
        ...[...plot.querySelectorAll('.legend .scrollbar')].filter(s => s.getBoundingClientRect().height > 0)
            .map(() => `${plot.id}: the legend scrolls`)])"""
    for width in (400, 1200):
        shared.page.set_viewport_size({"width": width, "height": 900})
        for _ in range(20):
            shared.page.wait_for_timeout(250)
            if not shared.page.evaluate(hard):
                break
        assert shared.page.evaluate(hard) == [], width


@pytest.mark.parametrize("width", [400, 1200, 1440])
def test_what_is_valid_is_in_view_and_a_table_that_is_wider_says_so(shared: Seen, width: int) -> None:
    shared.page.set_viewport_size({"width": width, "height": 900})
    shared.page.wait_for_timeout(600)
    if width > 400:
        assert shared.page.locator("#runs thead th", has_text="Valid").evaluate(
            "th => th.getBoundingClientRect().right <= th.closest('.scroll').getBoundingClientRect().right")
    wide = shared.page.evaluate("""() => [...document.querySelectorAll('.table-block')]
        .filter(b => !b.closest('details:not([open])'))
        .map(b => [b.querySelector('.scroll'), b.querySelector('.sideways')])
        .map(([box, hint]) => [box.scrollWidth > box.clientWidth, hint.offsetParent !== null])""")
    assert all(is_wide == told for is_wide, told in wide)
    assert any(is_wide for is_wide, _ in wide) or width > 400


def test_theme_goes_round_by_keyboard_and_restyles_the_plots(seen: Seen) -> None:
    def look() -> tuple[str, str]:
        return (seen.page.get_attribute("html", "data-theme"),
                seen.page.evaluate("document.querySelector('.plot').layout.xaxis.gridcolor"))

    button = seen.page.locator("#theme")
    button.focus()
    seen.page.keyboard.press("Enter")
    assert button.inner_text() == "Theme: light"
    settle(seen)
    light = look()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    settle(seen)
    dark = look()
    assert (light[0], dark[0]) == ("light", "dark")
    assert light[1] != dark[1]


def test_an_engine_can_be_hidden_in_all_figures_at_once(shared: Seen) -> None:
    buttons = shared.page.locator('[data-toggle="1"]')
    buttons.first.focus()
    shared.page.keyboard.press("Space")
    assert {buttons.nth(i).get_attribute("aria-pressed") for i in range(buttons.count())} == {"false"}
    settle(shared)
    shown = [trace for trace in drawn(shared, "ttft-load-0") if trace["visible"]]
    assert shown
    assert not any("contiguous" in trace["name"] for trace in shown)
    assert shared.page.locator('figure[data-engine="1"]:visible').count() == 0
    assert shared.page.evaluate(
        """() => [...document.querySelectorAll('.pane:not([hidden]) > .figures')].every(row => {
            const last = [...row.children].filter(f => !f.hidden).at(-1);
            return row.getBoundingClientRect().right - last.getBoundingClientRect().right < 2; })""")  # no empty end
    buttons.first.click()
    settle(shared)
    assert all(trace["visible"] for trace in drawn(shared, "ttft-load-0"))


def test_choosing_a_load_changes_both_sections(shared: Seen) -> None:
    shared.page.select_option("#feel-load-0", "0-2")
    assert shared.page.input_value("#memory-load-0") == "0-2"
    panes = shared.page.evaluate("[...document.querySelectorAll('.pane:not([hidden])')].map(p => p.dataset.pane)")
    assert panes == ["0-2", "0-2"]
    settle(shared)
    assert shared.page.locator("#ttft-0-2 svg.main-svg").count() > 0
    assert shared.complaints == []
    shared.page.select_option("#memory-load-0", "0-1")
    assert shared.page.input_value("#feel-load-0") == "0-1"


def test_a_reload_brings_back_no_load_that_is_not_shown(shared: Seen) -> None:
    """Firefox keeps what was chosen, unless it is told not to."""
    chosen = "[...document.querySelectorAll('select[data-group]')].map(s => s.autocomplete)"
    assert set(shared.page.evaluate(chosen)) == {"off"}


def test_csv_equals_the_data(shared: Seen, results: Path) -> None:
    with shared.page.expect_download() as caught:
        shared.page.click('a[download="runs.csv"]')
    rows = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8"))))
    assert caught.value.suggested_filename == "runs.csv"
    assert len(rows) == shared.page.locator("#runs tbody tr").count() == 7
    summary = summarise(load_run(results / "contiguous/u08"))
    row = next(row for row in rows if row["engine"] == summary.label and row["load"] == summary.load)
    assert summary.ttft_ms is not None
    assert float(row["ttft_p99_ms"]) == summary.ttft_ms.p99
    assert float(row["utilisation_share"]) == summary.utilisation
    assert row["wrong_tokens"] == str(summary.wrong_tokens) == "4"
    silent = next(row for row in rows if row["engine"] == "silent engine")
    assert silent["utilisation_share"] == ""


def test_failures_open_by_keyboard_and_show_their_text(shared: Seen) -> None:
    failure = shared.page.locator("details.failure").first
    failure.locator("summary").focus()
    shared.page.keyboard.press("Enter")
    assert "copy it before the first write" in failure.locator("pre").inner_text()


def test_follows_a_dark_system_and_prints_light_with_everything_open(browser: Any, report: Path) -> None:
    for seen in open_report(browser, report, color_scheme="dark"):
        assert seen.page.get_attribute("html", "data-theme") == "dark"
        seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert seen.page.get_attribute("html", "data-theme") == "light"
        assert seen.page.locator("details:not([open])").count() == 0
        seen.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert seen.page.get_attribute("html", "data-theme") == "dark"
        assert seen.page.locator("details:not([open])").count() > 0


def test_hostile_text_is_shown_and_never_runs(browser: Any, hostile_report: Path) -> None:
    for seen in open_report(browser, hostile_report):
        settle(seen)
        seen.page.hover(".plot .main-svg >> nth=0")
        seen.page.wait_for_timeout(200)
        assert seen.complaints == []
        assert seen.page.locator('img[src="x"]').count() == 0
        assert seen.page.title().startswith("pabench: %{x}<img")
        shown = seen.page.locator("h1").inner_text()
        assert HOSTILE.split("\u202e")[0] in shown
        assert "\u202e" not in seen.page.content()
        assert HOSTILE[:30] in seen.page.locator("details.failure pre").first.text_content()
        labels = seen.page.evaluate("[...document.querySelectorAll('.plot text')].map(t => t.textContent).join(' ')")
        assert "%{x}<img src=x" in labels
        hover = seen.page.evaluate(
            """() => { const p = document.getElementById('throughput-0');
                Plotly.Fx.hover(p, [{curveNumber: 0, pointNumber: 0}]);
                return p.querySelector('.hoverlayer').textContent; }""")
        assert '%{x}<img src=x onerror="' in hover
        assert seen.complaints == []


def test_a_block_map_is_unrolled_and_follows_the_theme(seen: Seen) -> None:
    look = """() => {
        const plot = [...document.querySelectorAll(".plot[id^=blocks-]")].find((place) => place.offsetParent);
        const map = plot.data[0];
        return [map.z.length, map.z[0].length, map.text[10].includes("free"), map.colorscale[0][1]];
    }"""
    settle(seen)
    dark = seen.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    before = seen.page.evaluate(look)
    assert before[:3] == [256, 600, True]
    for _ in range(1 if dark else 2):
        seen.page.click("#theme")
    settle(seen)
    assert seen.page.evaluate(look)[3] != before[3]
    assert not seen.complaints


def test_axe_finds_nothing_to_complain_about(browser: Any, report: Path) -> None:
    for seen in open_report(browser, report, bypass_csp=True):
        assert_accessible(seen)


def test_a_search_for_the_capacity_is_drawn_hidden_and_accessible(
    browser: Any, searched: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    write_report([searched], out)
    for seen in open_report(browser, out, bypass_csp=True):
        settle(seen)
        assert len(drawn(seen, "capacity-0-0")) == 3
        seen.page.locator('[data-toggle="1"]').first.click()
        settle(seen)
        assert [trace["visible"] for trace in drawn(seen, "capacity-0-0")] == [True, False, True]
        seen.page.locator("#load details.more summary").click()
        assert seen.page.locator("#tried-0-0 tbody tr").count() > 6
        assert seen.complaints == []
        assert_accessible(seen, part="#load")  # the rest is as in every report


def assert_accessible(seen: Seen, part: str | None = None) -> None:
    """In light and dark. `seen` lets foreign scripts in: axe is one."""
    for scheme in ("light", "dark"):
        seen.page.emulate_media(color_scheme=scheme)
        seen.page.wait_for_selector(f"html[data-theme={scheme}]")
        settle(seen)
        # Complaints alone are told in full: to name all that is right takes four fifths of its time.
        found = Axe().run(seen.page, context=part,
                          options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"],
                                   "resultTypes": ["violations"]})
        told = [f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']][:4]}"
                for one in found.response["violations"]]
        assert told == [], scheme


@pytest.mark.parametrize(("title", "start"), [("Download as PNG", b"\x89PNG"), ("Download as SVG", b"<svg")])
def test_a_figure_can_be_taken_away(shared: Seen, title: str, start: bytes) -> None:
    plot = shared.page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    plot.hover()
    with shared.page.expect_download() as download:
        plot.locator(f'[data-title="{title}"]').click()
    assert Path(download.value.path()).read_bytes().startswith(start)
    assert shared.complaints == []


def test_a_gate_and_claims_are_shown(shared: Seen) -> None:
    gate = shared.page.locator(".gate")
    assert "REGRESSION" in gate.inner_text()
    assert "Worse: tpot_p50_ms +20.0 %" in gate.inner_text()
    assert shared.page.locator("#claims-table tbody tr").count() == 2


def test_a_history_is_drawn_offline_and_hostile_names_do_not_run(browser: Any, tmp_path: Path) -> None:
    for seed in range(12):
        write_run(tmp_path / "runs" / str(seed), Made(
            HOSTILE, requests=16, seed=seed, slower=1.0 if seed < 6 else 1.4, version=HOSTILE if seed < 6 else "2.0",
            started_at=f"2026-01-02T03:{seed:02}:05+00:00"))
    runs, _ = read_all([tmp_path / "runs"])
    found = histories(runs, ["tpot_p50_ms"])
    assert len(found[0].steps) == 1
    write_history(found, tmp_path / "history.html")
    for seen in open_report(browser, tmp_path / "history.html"):
        assert seen.complaints == []
        assert [url for url in seen.requests if not url.startswith("data:")] == [(tmp_path / "history.html").as_uri()]
        assert seen.page.title() == "pabench history"
        assert seen.page.locator("img").count() == 0
        assert "worse by +" in seen.page.locator("figcaption").inner_text()
        assert seen.page.evaluate("document.querySelector('.plot').data[0].y.length") == 12
