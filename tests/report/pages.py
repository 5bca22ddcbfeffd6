"""Pages in a browser: what is open, what it did, and when all of it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Seen:
    """A page, and what it did."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def settle(seen: Seen) -> None:
    """Wait until every figure in sight is drawn as it should be by now."""
    seen.page.wait_for_selector("html[data-ready=yes]")


def open_report(browser: Any, report: Path, **context: Any) -> Iterator[Seen]:
    tab = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
    seen = Seen(tab.new_page())
    seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(report.as_uri())
    yield seen
    tab.close()


def drawn(seen: Seen, figure: str) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = seen.page.evaluate(
        "id => document.getElementById(id).data.map(t => ({name: t.name, visible: t.visible}))", figure)
    return traces
