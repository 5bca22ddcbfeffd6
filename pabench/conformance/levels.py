"""The levels of the suite, and which of them an implementation is of.

    http    a server at a URL: suites/http, fixture `engine`
    alloc   a block manager in process: suites/alloc, fixture `allocator`
    kernel  paged attention in process: suites/kernel, fixture `kernel`

The package pabench.conformance.<level> of a level in process brings

    Adapter        the protocol of its adapters, runtime-checkable: what makes an adapter one of this level
    CAPABILITIES   the closed vocabulary of `needs`, and of an adapter's `capabilities`
    UnderTest      what a test holds: an implementation.ImplementationUnderTest
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

SUITE_LEVELS = ("kernel", "alloc", "http")  # the first word of a requirement's id
IN_PROCESS = ("alloc", "kernel")


def level_of_id(requirement_id: str) -> str:
    """"alloc" of "alloc/conservation"."""
    return requirement_id.partition("/")[0]


def package(level: str) -> ModuleType:
    """The package of a level in process."""
    return importlib.import_module(f"pabench.conformance.{level}")


def capabilities(level: str) -> frozenset[str]:
    """The vocabulary of what requirements of a level may need."""
    if level == "http":  # here, since pytest imports the plugin in every run and the engines bring an HTTP client
        from pabench.engines.base import CAPABILITIES

        return CAPABILITIES
    known: frozenset[str] = package(level).CAPABILITIES
    return known


def level_of(adapter: Any) -> str | None:
    """The level in process whose protocol `adapter` fulfils; None: of neither."""
    return next((level for level in IN_PROCESS if isinstance(adapter, package(level).Adapter)), None)
