"""What a pytest item of the suite is called: its requirement, its case, both."""

from __future__ import annotations

import pytest


def requirement_id(item: pytest.Item) -> str | None:
    """The requirement that a test decides; None for an ordinary test."""
    marker = item.get_closest_marker("requirement")
    if marker is None:
        return None
    if len(marker.args) != 1 or not isinstance(marker.args[0], str) or set(marker.kwargs) - {"case"}:
        raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.requirement(\"http/…\"), got {marker}")
    return marker.args[0]


def case_name(item: pytest.Item) -> str:
    """The case that the marker names, or the parameters of the test as pytest names them, or both; else ""."""
    marker = item.get_closest_marker("requirement")
    callspec = getattr(item, "callspec", None)
    parts = [marker.kwargs.get("case") if marker else None, None if callspec is None else callspec.id]
    return "-".join(str(part) for part in parts if part)


def item_name(item: pytest.Item) -> str:
    """Requirement and case, as results and expectations name it: "http/ring-exact[kB]"."""
    case = case_name(item)
    return f"{requirement_id(item)}[{case}]" if case else str(requirement_id(item))
