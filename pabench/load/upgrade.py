"""Manifests of earlier schema versions, brought up to this one step by step. What is on disk is not rewritten.

A change of the manifest's fields, or of what one of them means, is a new version: `records.SCHEMA_VERSION` goes up,
and `_STEPS` gets the step from the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pabench
from pabench.errors import UsageError
from pabench.load.records import SCHEMA_VERSION

Raw = dict[str, Any]


def upgrade(raw: object) -> Raw:
    """A manifest's JSON as this version has it. Raises UsageError for what is none, or newer than this pabench."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(version, int) or version < 1:
        raise UsageError("it has no schema_version, a whole number from 1 on")
    if version > SCHEMA_VERSION:
        raise UsageError(f"it is of schema version {version}, and pabench {pabench.__version__} reads versions up to "
                         f"{SCHEMA_VERSION}: read it with the pabench that wrote it, or a later one")
    for step in range(version, SCHEMA_VERSION):
        raw = {**_STEPS[step](raw), "schema_version": step + 1}
    return raw


def _from_1(raw: Raw) -> Raw:
    """Version 2 keeps the verdict of the run's end; those before left it to the reader."""
    return {**raw, "validity": None}


def _from_2(raw: Raw) -> Raw:
    """Version 3 tells in which parts of a run a killed client left no word of itself; those before did not."""
    return {**raw, "unwatched": []}


_STEPS: dict[int, Callable[[Raw], Raw]] = {1: _from_1, 2: _from_2}
