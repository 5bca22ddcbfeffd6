"""Why requests failed: those that ended alike are told together, with what the engine, or the wire, said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pabench.engines.cleaning import clean

COLUMNS = ("outcome", "error_kind", "http_status", "error_text")  # of REQUEST_SCHEMA, that this reads
FAILED = ("error", "timeout")
_MOST = 5


@dataclass(frozen=True, slots=True)
class Failed:
    """Requests that failed in one way. `said` is cleaned, and may be hostile in a page all the same."""

    count: int
    outcome: str        # error | timeout
    kind: str | None    # of records.ERROR_KINDS
    status: int | None  # of HTTP
    said: str

    @property
    def way(self) -> str:
        """How they failed, without what was said of it."""
        return f"HTTP {self.status}" if self.kind == "http" else self.kind or self.outcome

    @property
    def text(self) -> str:
        """For a person: "4 x HTTP 429: rate limited"."""
        said = "" if self.said == self.way else self.said
        return f"{self.count} x {': '.join(filter(None, (self.way, said)))}"


def failed_ways(requests: pd.DataFrame) -> tuple[Failed, ...]:
    """The most frequent ways in which requests (with COLUMNS) failed, most frequent first; empty where none did."""
    failed = requests[requests["outcome"].isin(FAILED)]
    counts = failed.groupby(list(COLUMNS), dropna=False, sort=False).size().sort_values(ascending=False, kind="stable")
    return tuple(map(_failed, counts.head(_MOST).reset_index(name="number").itertuples(index=False)))


def _failed(row: Any) -> Failed:
    kind, status, said = (None if pd.isna(told) else told for told in (row.error_kind, row.http_status, row.error_text))
    return Failed(int(row.number), row.outcome, kind, None if status is None else int(status), clean(said or ""))
