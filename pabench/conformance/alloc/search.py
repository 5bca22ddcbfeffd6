"""Looking for a trace that breaks a property, and making it as short as it can be.

Hypothesis draws the traces and shrinks; then operations are left out one by one, for as long as it still breaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis.strategies import SearchStrategy

from pabench.conformance.search import search as search_cases
from pabench.errors import RequirementFailed

Trace = dict[str, Any]


def search(
    strategy: SearchStrategy[Trace], play: Callable[[Trace], None], *, traces: int, seed: int, shrink_s: float
) -> Trace | None:
    """The shortest trace found for which `play` raises RequirementFailed; None: `traces` of them do not.

    Shorter ones are looked for during about `shrink_s` seconds. Raises EngineError, as `search_cases` does.
    """
    found = search_cases(strategy, play, examples=traces, seed=seed, shrink_s=shrink_s / 2)
    return None if found is None else shortened(found, play, shrink_s / 2)


def shortened(trace: Trace, play: Callable[[Trace], None], limit_s: float) -> Trace:
    """`trace` without the operations that it breaks without, as far as `limit_s` seconds go."""
    operations, end = list(trace["operations"]), time.monotonic() + limit_s
    width = max(len(operations) // 2, 1)
    while width and time.monotonic() < end:
        at = 0
        while at < len(operations) and time.monotonic() < end:
            shorter = operations[:at] + operations[at + width :]
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
