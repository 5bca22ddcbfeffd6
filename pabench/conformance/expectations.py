"""What an operator knows beforehand: failures that are expected, and requirements that are not to be run.

    [[expected]]
    id = "http/usage-exact"             # a requirement; or one case of it, "http/ring-exact[kB+1]"
    when = { dialect = "vllm" }         # all of these must hold; keys: dialect, version, kv_mode, impl, profile
    reason = "…"
    issue = "https://…"

    [[disabled]]
    id = "http/no-starvation"
    reason = "…"

An id that no requirement has is an error, and an expected failure that passes (XPASS) fails the run: so the file
cannot rot unseen. `version` matches by its beginning, the others as a whole.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pabench.errors import UsageError

CONDITIONS = ("dialect", "version", "kv_mode", "impl", "profile")


@dataclass(frozen=True, slots=True)
class Expectation:
    """An expected failure of requirement or case `id`, where all of `when` hold."""

    id: str
    reason: str
    issue: str
    when: Mapping[str, str] = field(default_factory=dict)

    def applies(self, name: str, requirement: str, circumstances: Mapping[str, str | None]) -> bool:
        """Whether it speaks of the case `name` of `requirement` in these circumstances."""
        if self.id not in (name, requirement):
            return False
        return all(_holds(key, wanted, circumstances.get(key)) for key, wanted in self.when.items())


@dataclass(frozen=True, slots=True)
class Expectations:
    """A whole expectations file. `disabled` maps id to reason."""

    expected: tuple[Expectation, ...] = ()
    disabled: Mapping[str, str] = field(default_factory=dict)

    def expected_failure(
        self, name: str, requirement: str, circumstances: Mapping[str, str | None]
    ) -> Expectation | None:
        """The first expectation that applies."""
        return next((e for e in self.expected if e.applies(name, requirement, circumstances)), None)

    def disabled_reason(self, name: str, requirement: str) -> str | None:
        """Why the operator does not want this case run; None when it is wanted."""
        return self.disabled.get(name, self.disabled.get(requirement))


def load_expectations(path: Path, requirements: Collection[str]) -> Expectations:
    """Read and check an expectations file. `requirements` are the ids that exist. Raises UsageError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the expectations in {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    if extra := sorted(set(document) - {"expected", "disabled"}):
        raise UsageError(f"{path}: unknown keys {', '.join(extra)}; expected [[expected]] and [[disabled]]")
    expected = []
    for entry in _entries(path, document, "expected", required=("id", "reason", "issue"), optional=("when",)):
        _check_id(path, entry["id"], requirements)
        _check_when(path, entry)
        expected.append(Expectation(**entry))
    disabled = {}
    for entry in _entries(path, document, "disabled", required=("id", "reason"), optional=()):
        _check_id(path, entry["id"], requirements)
        disabled[entry["id"]] = entry["reason"]
    return Expectations(tuple(expected), disabled)


def _entries(
    path: Path, document: dict[str, Any], key: str, required: tuple[str, ...], optional: tuple[str, ...]
) -> list[dict[str, Any]]:
    entries = document.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path}: {key} must be written as [[{key}]]")
    for entry in entries:
        if missing := [name for name in required if not isinstance(entry.get(name), str) or not entry[name]]:
            raise UsageError(f"{path}: an entry of [[{key}]] ({entry.get('id', 'without id')}) lacks {missing[0]}")
        if extra := sorted(set(entry) - {*required, *optional}):
            raise UsageError(f"{path}: [[{key}]] {entry['id']!r} has unknown keys {', '.join(extra)}")
    return entries


def _check_id(path: Path, entry_id: str, requirements: Collection[str]) -> None:
    if entry_id.partition("[")[0] not in requirements:
        raise UsageError(f"{path} speaks of {entry_id!r}, which is no requirement; known: {', '.join(requirements)}")


def _check_when(path: Path, entry: dict[str, Any]) -> None:
    when = entry.get("when", {})
    if not isinstance(when, dict) or not all(isinstance(value, str) for value in when.values()):
        raise UsageError(f"{path}: {entry['id']!r}: when is {when!r}, expected a table of strings")
    if unknown := sorted(set(when) - set(CONDITIONS)):
        raise UsageError(f"{path}: {entry['id']!r}: unknown condition {unknown[0]!r}; known: {', '.join(CONDITIONS)}")


def _holds(key: str, wanted: str, actual: str | None) -> bool:
    if actual is None:
        return False
    return actual.startswith(wanted) if key == "version" else actual == wanted
