"""What a pytest item of the suite is called: its requirement, its case, both, and that no two are called the same.

And what comes before what, and whether all of a level is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from pabench.conformance.levels import level_of_id
from pabench.resources import data_dir


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


def check_markers(items: Sequence[pytest.Item], known: Iterable[str]) -> None:
    """Raise UsageError for a requirement that is not known, and for two tests of one name."""
    known = list(known)
    seen: dict[str, pytest.Item] = {}
    for item in items:
        marked = requirement_id(item)
        if marked is None:
            continue
        if marked not in known:
            raise pytest.UsageError(f"{item.nodeid} is marked with {marked!r}, which is no requirement; "
                                    f"known: {', '.join(known)}")
        other = seen.setdefault(item_name(item), item)
        if other is not item:
            raise pytest.UsageError(f"{item.nodeid} and {other.nodeid} are both {item_name(item)}: "
                                    f"give one a case, @pytest.mark.requirement({marked!r}, case=\"…\")")


def in_order(items: Sequence[pytest.Item], known: Iterable[str]) -> list[pytest.Item]:
    """Requirements in their file's order: what may end an engine comes late. Other tests keep their places."""
    order = {each: place for place, each in enumerate(known)}
    asking = iter(sorted((item for item in items if requirement_id(item) is not None),
                         key=lambda item: order[str(requirement_id(item))]))
    return [item if requirement_id(item) is None else next(asking) for item in items]


def ships(item: pytest.Item) -> bool:
    """Whether a test is one of the suites that ship, which `pabench replay` finds again."""
    return item.path.resolve().is_relative_to(data_dir("suites").resolve())


def cases_of_level(items: Iterable[pytest.Item], level: str, known: Iterable[str]) -> list[str]:
    """Names of the cases that ship of `level`; none where a requirement of it has no case among `items`."""
    shipped = [item for item in items if requirement_id(item) is not None and ships(item)]
    there = {requirement_id(item) for item in shipped}
    lacks = any(level_of_id(each) == level and each not in there for each in known)
    return [] if lacks else [item_name(item) for item in shipped]
