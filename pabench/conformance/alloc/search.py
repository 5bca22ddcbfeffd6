"""Looking for a trace that breaks a property, and making it as short as it can be.

Hypothesis draws the traces and shrinks; then operations are left out one by one, for as long as it still breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis.strategies import SearchStrategy

from pabench.conformance.search import search as search_cases
from pabench.errors import RequirementFailed

Trace = dict[str, Any]
_MAX_TRIES = 300


def search(strategy: SearchStrategy[Trace], play: Callable[[Trace], None], *, traces: int, seed: int) -> Trace | None:
    """The shortest trace found for which `play` raises RequirementFailed; None: `traces` of them do not.

    Raises EngineError, as `search_cases` does.
    """
    found = search_cases(strategy, play, examples=traces, seed=seed)
    return None if found is None else shortened(found, play)


def shortened(trace: Trace, play: Callable[[Trace], None]) -> Trace:
    """`trace` without the operations that it breaks without."""
    operations, tries = list(trace["operations"]), 0
    width = max(len(operations) // 2, 1)
    while width and tries < _MAX_TRIES:
        at = 0
        while at < len(operations) and tries < _MAX_TRIES:
            shorter = operations[:at] + operations[at + width :]
            tries += 1
            if _breaks({**trace, "operations": shorter}, play):
                operations = shorter
            else:
                at += width
        width //= 2
    return {**trace, "operations": operations}


def _breaks(trace: Trace, play: Callable[[Trace], None]) -> bool:
    try:
        play(trace)
    except RequirementFailed:
        return True
    return False
