"""One figure: what was measured from outside, how, and what the engine itself states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["found", "at least", "unknown", "not applicable"]


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a part has measured nothing, or no more.

    "not applicable": the engine has no such thing. "unknown": it may have, and it could not be measured.
    """

    state: Literal["unknown", "not applicable"]
    reason: str


NOT_REACHED = Ended("unknown", "the measurement ended before it came to this")


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` is None where the state is "unknown" or "not applicable"; `how` then says why.

    `low` and `high` enclose the truth, as far as was found; `stated` is the engine's own figure, None where it tells
    none.
    """

    name: str
    unit: str
    state: State
    how: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    stated: float | None = None

    @property
    def ratio(self) -> float | None:
        """Measured over stated; None where either is missing."""
        return None if self.value is None or not self.stated else self.value / self.stated


def missing(name: str, unit: str, ended: Ended | None, stated: float | None = None) -> Figure:
    """The figure of a part that has found nothing."""
    why = ended or NOT_REACHED
    return Figure(name, unit, why.state, why.reason, stated=stated)
