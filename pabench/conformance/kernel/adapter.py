"""The seam to paged attention: what an adapter of the kernel level has."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

CAPABILITIES: frozenset[str] = frozenset()


@runtime_checkable
class KernelAdapter(Protocol):
    """Paged attention under test. See pabench.conformance.implementation for what adapters of all levels have."""

    capabilities: frozenset[str]

    def describe(self) -> str:
        """What really runs."""
        ...

    def unsupported(self, case: Any) -> list[str]:
        """Why `case` cannot be asked of it."""
        ...

    def attend(self, case: Any) -> Any:
        """Attention of one case."""
        ...
