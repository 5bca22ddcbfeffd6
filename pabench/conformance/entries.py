"""TOML files that are a list of tables: the requirements, and the catalogue of bugs.

Without a model of pydantic's, which every run of pytest would import with the plugin.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pabench.errors import UsageError


def read_entries(path: Path, what: str, key: str, *others: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The [[key]] tables of the TOML file `path`, and the whole file, which may have `others` beside them.

    Raises UsageError that names `what` cannot be read, for other keys, and where there is no entry.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {what} in {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    if extra := sorted(set(document) - {key, *others}):
        expected = " and ".join([*others, f"[[{key}]]"])
        raise UsageError(f"{path}: unknown keys {', '.join(extra)}; expected {expected}")
    entries: list[dict[str, Any]] = document.get(key, [])
    if not entries:
        raise UsageError(f"{path} holds no [[{key}]]")
    return entries, document
