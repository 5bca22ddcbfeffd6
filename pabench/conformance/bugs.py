"""The catalogue of real bugs, read from suites/bugs.toml: what requirements would have caught and mutants model.

    [[bug]]
    id = "xllm-beam-cow-missing"     # as requirements (`bugs`) and mutants (`BUG`) call it
    engine = "xLLM"
    reference = "#1984"              # issue, pull request, commit or CVE of that engine
    fault = "…"                      # what was wrong, in one sentence
    level = "alloc"                  # cheapest level at which it shows: kernel, alloc, engine or http
    http = "yes"                     # whether a client sees it with an ordinary model: yes, partly or no
    no_mutant = "…"                  # why there is no mutant of it; only where there is none
    not_shown = "http"               # a level of the suite at which it should show by `level` and `http`, and cannot
    not_shown_why = "…"              # why; only with not_shown
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pabench.conformance.entries import read_entries
from pabench.conformance.levels import SUITE_LEVELS
from pabench.conformance.registry import BUG_ID
from pabench.errors import UsageError
from pabench.resources import data_dir

CHEAPEST = ("kernel", "alloc", "engine", "http")
SEEN_OVER_HTTP = ("yes", "partly", "no")


@dataclass(frozen=True, slots=True)
class Bug:
    """One bug that an engine or a kernel really had. Checked when made; raises UsageError."""

    id: str
    engine: str
    reference: str
    fault: str
    level: str
    http: str
    no_mutant: str = ""
    not_shown: str = ""
    not_shown_why: str = ""

    @property
    def should_show(self) -> tuple[str, ...]:
        """Levels of the suite: the cheapest, and http where a client sees it. A whole engine is asked over HTTP."""
        first = "http" if self.level == "engine" else self.level
        return tuple(level for level in SUITE_LEVELS if level == first or (level == "http" and self.http == "yes"))

    def __post_init__(self) -> None:
        problems = []
        if not BUG_ID.fullmatch(self.id):
            problems.append("the id is not words in lower case joined by hyphens")
        if not self.engine or not self.reference:
            problems.append("engine and reference must say something")
        if not all(text.endswith(".") for text in (self.fault, self.no_mutant, self.not_shown_why) if text):
            problems.append("fault, no_mutant and not_shown_why must be sentences")
        if bool(self.not_shown) != bool(self.not_shown_why):
            problems.append("not_shown and not_shown_why go together")
        for key, value, known in (("level", self.level, CHEAPEST), ("http", self.http, SEEN_OVER_HTTP)):
            if value not in known:
                problems.append(f"unknown {key} {value!r}, expected one of {', '.join(known)}")
        if not problems and self.not_shown and self.not_shown not in self.should_show:
            problems.append(f"not_shown is {self.not_shown!r}, where it should show is {', '.join(self.should_show)}")
        if problems:
            raise UsageError(f"bug {self.id!r}: {'; '.join(problems)}")


def load_bugs(path: Path | None = None) -> dict[str, Bug]:
    """All entries by id, in the order of the file; by default the one that ships with pabench. Raises UsageError."""
    path = path or data_dir("suites") / "bugs.toml"
    entries, _ = read_entries(path, "the bugs", "bug")
    bugs: dict[str, Bug] = {}
    for entry in entries:
        bug = _parse(entry, path)
        if bug.id in bugs:
            raise UsageError(f"{path}: two bugs have the id {bug.id!r}")
        bugs[bug.id] = bug
    return bugs


def _parse(entry: dict[str, Any], path: Path) -> Bug:
    name = entry.get("id", "without id")
    known = [field.name for field in fields(Bug)]
    if missing := [key for key in known if key not in (*entry, "no_mutant", "not_shown", "not_shown_why")]:
        raise UsageError(f"{path}: bug {name!r} lacks {', '.join(missing)}")
    if extra := [key for key in entry if key not in known]:
        raise UsageError(f"{path}: bug {name!r} has unknown keys {', '.join(extra)}")
    if wrong := [key for key, value in entry.items() if not isinstance(value, str)]:
        raise UsageError(f"{path}: bug {name!r}: {', '.join(wrong)} must be strings")
    return Bug(**entry)
