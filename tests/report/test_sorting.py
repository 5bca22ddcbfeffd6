"""Tables of the report in a browser: sorted by a click on any column, numbers by their size and words in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import Seen, open_report


@pytest.fixture
def seen(browser: Any, report: Path) -> Iterator[Seen]:
    """A page whose figures are still being drawn."""
    yield from open_report(browser, report)


def test_tables_are_sorted_by_keyboard_and_mouse(seen: Seen) -> None:
    table = seen.page.locator("table:not(.flip):has(thead th.number .sort)").first
    head = table.locator("thead th.number").first
    column = head.evaluate("th => th.cellIndex")

    def values() -> list[float]:
        found: list[float] = table.evaluate(
            "(t, c) => [...t.tBodies[0].rows].map(r => r.cells[c].dataset.value).filter(v => v).map(Number)", column)
        return found

    before = sorted(values())
    head.locator(".sort").focus()
    seen.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == before[::-1]
    head.locator(".sort").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == before
    words = table.locator("thead th:not(.number)").first
    words.locator(".sort").click()
    assert (words.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("ascending", "none")


def test_words_are_sorted_by_the_numbers_in_them_and_what_is_not_told_stays_last(seen: Seen) -> None:
    def column(table: str, title: str) -> list[tuple[str, bool]]:
        """Text, and whether it is not told, once the column was sorted by a click."""
        seen.page.locator(f"{table} thead th", has_text=title).locator(".sort").click()
        found: list[tuple[str, bool]] = [(text, untold) for text, untold in seen.page.evaluate(
            """([table, title]) => {
                const all = (what) => [...document.querySelectorAll(`${table} ${what}`)];
                const at = all('thead th').findIndex(head => head.innerText.includes(title));
                return all('tbody tr').map(row => row.cells[at])
                    .map(cell => [cell.innerText.trim(), cell.querySelector('.unknown') !== null]); }""",
            [table, title])]
        return found

    up = [int(text.split()[0]) for text, _ in column("#runs", "Load")]
    assert up == sorted(up)
    assert {2, 8, 24} == set(up)
    for turned in (False, True):
        cells = column("#ratios-0", "2 users")
        told = [float(text.split("×")[0]) for text, untold in cells if not untold]
        assert told == sorted(told, reverse=turned)
        assert len(told) > 1
        assert [untold for _, untold in cells] == sorted(untold for _, untold in cells)
        assert cells[-1][1]
