"""One row of the mechanisms' table: a name, its switch, and the arms that are run in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reference_engine.benchmarks.serving import Bench

Arm = Callable[[], dict[str, float]]  # one run: figure -> value
Arms = dict[str, Arm]                 # the first is the baseline


@dataclass(frozen=True, slots=True)
class Measurement:
    """`arms` makes what is run, on the models of a bench; `setting` says what is served."""

    mechanism: str
    switch: str
    setting: str
    arms: Callable[[Bench], Arms]


def measurement(mechanism: str, switch: str, setting: str) -> Callable[[Callable[[Bench], Arms]], Measurement]:
    """Make a measurement of the function below."""
    return lambda arms: Measurement(mechanism, switch, setting, arms)
