"""The requirements, read from suites/requirements.toml and checked before anything runs.

    spec_version = 1

    [[requirement]]
    id = "http/ring-exact"      # level of the suite, then a name; immutable, retired rather than reused
    level = "MUST"              # MUST | SHOULD | INFO
    since = 1                   # spec version that brought it
    text = "…"                  # the normative sentence
    why = "…"                   # what goes wrong for users otherwise
    bugs = ["…"]                # entries of the bug catalogue that it would have caught
    needs = ["…"]               # from the vocabulary of its level, levels.capabilities
    probe = false               # http: where self-consistency of another model than the KV probe can tell too
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pabench.conformance.entries import read_entries
from pabench.conformance.levels import SUITE_LEVELS, capabilities, level_of_id
from pabench.errors import UsageError
from pabench.resources import data_dir

LEVELS = ("MUST", "SHOULD", "INFO")
_ID = re.compile(rf"({'|'.join(SUITE_LEVELS)})/[a-z0-9]+(-[a-z0-9]+)*")
BUG_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
_REQUIRED = {"id": str, "level": str, "since": int, "text": str, "why": str, "bugs": list, "needs": list}
_OPTIONAL = {"probe": bool}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that an engine must do. Checked when made; raises UsageError."""

    id: str
    level: str
    since: int
    text: str
    why: str
    bugs: tuple[str, ...]
    needs: tuple[str, ...]
    probe: bool = True

    def __post_init__(self) -> None:
        problems = []
        if not _ID.fullmatch(self.id):
            problems.append("the id is not kernel/…, alloc/… or http/… in lower case and hyphens")
        if self.level not in LEVELS:
            problems.append(f"unknown level {self.level!r}, expected one of {', '.join(LEVELS)}")
        known = capabilities(level_of_id(self.id)) if _ID.fullmatch(self.id) else frozenset(self.needs)
        if unknown := sorted(set(self.needs) - known):
            problems.append(f"unknown needs {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if misspelt := [bug for bug in self.bugs if not BUG_ID.fullmatch(bug)]:
            problems.append(f"not names of bug catalogue entries: {', '.join(misspelt)}")
        if len(set(self.bugs)) < len(self.bugs):
            problems.append("a bug is named twice")
        if self.since < 1:
            problems.append(f"since is {self.since}, expected a spec version from 1 on")
        if not self.text.endswith(".") or not self.why.endswith("."):
            problems.append("text and why must be sentences")
        if self.level in ("MUST", "SHOULD") and self.level not in self.text:
            problems.append(f"the text does not say {self.level}")
        if problems:
            raise UsageError(f"requirement {self.id!r}: {'; '.join(problems)}")


@dataclass(frozen=True, slots=True)
class Registry(Mapping[str, Requirement]):
    """All requirements by id, of one version of the specification."""

    spec_version: int
    requirements: Mapping[str, Requirement]

    def __getitem__(self, requirement_id: str) -> Requirement:
        try:
            return self.requirements[requirement_id]
        except KeyError:
            raise UsageError(
                f"unknown requirement {requirement_id!r}; known: {', '.join(self.requirements)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.requirements)

    def __len__(self) -> int:
        return len(self.requirements)

    def __contains__(self, requirement_id: object) -> bool:
        return requirement_id in self.requirements


def load_registry(path: Path | None = None) -> Registry:
    """Read and check a requirements file; by default the one that ships with pabench. Raises UsageError."""
    path = path or data_dir("suites") / "requirements.toml"
    entries, document = read_entries(path, "the requirements", "requirement", "spec_version")
    version = document.get("spec_version")
    if not isinstance(version, int) or version < 1:
        raise UsageError(f"{path}: spec_version is {version!r}, expected an integer from 1 on")
    requirements: dict[str, Requirement] = {}
    for entry in entries:
        requirement = _parse(entry, path)
        if requirement.id in requirements:
            raise UsageError(f"{path}: two requirements have the id {requirement.id!r}; ids are never reused")
        if requirement.since > version:
            raise UsageError(f"{path}: {requirement.id} is since {requirement.since}, the file is version {version}")
        requirements[requirement.id] = requirement
    return Registry(version, requirements)


def _parse(entry: dict[str, Any], path: Path) -> Requirement:
    name = entry.get("id", "without id")
    types = _REQUIRED | _OPTIONAL
    if missing := [key for key in _REQUIRED if key not in entry]:
        raise UsageError(f"{path}: requirement {name!r} lacks {', '.join(missing)}")
    if extra := [key for key in entry if key not in types]:
        raise UsageError(f"{path}: requirement {name!r} has unknown keys {', '.join(extra)}")
    for key, value in entry.items():
        if type(value) is not types[key]:
            raise UsageError(f"{path}: requirement {name!r}: {key} is {value!r}, expected {types[key].__name__}")
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in entry.items()}
    if not all(isinstance(item, str) for key in ("bugs", "needs") for item in values[key]):
        raise UsageError(f"{path}: requirement {name!r}: bugs and needs must be lists of strings")
    return Requirement(**values)
