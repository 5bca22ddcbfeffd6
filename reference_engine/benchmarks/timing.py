"""What the benchmarks share: arms run in turns, so that a slow moment of the machine meets all of them alike."""

from __future__ import annotations

import gc
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes of the repetitions of one figure."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str = ",.0f") -> str:
        """As "median (low–high)"; the median alone where nothing spreads."""
        told, low, high = (format(value, form) for value in (self.median, self.low, self.high))
        return told if low == high else f"{told} ({low}–{high})"

    def inside(self, low: float, high: float) -> bool:
        """Whether all values are from `low` to `high`."""
        return low <= self.low and self.high <= high


def in_turns(arms: Mapping[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Run each arm `repeats` times, A B A B; arm -> figure -> its values, in order."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            for figure, value in run().items():
                found[name].setdefault(figure, []).append(value)
    return found


@contextmanager
def no_collections() -> Iterator[None]:
    """No garbage collection inside: it would hit whichever arm happens to run."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def output() -> Console:
    """Standard output, wide enough for a table where it is no terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=150)


def machine() -> dict[str, str | int | float]:
    """Where this runs. `load` is that of the last minute, before the benchmark has added to it."""
    return {
        "cpu": _cpu_name(), "cores": os.cpu_count() or 0, "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2), "python": platform.python_version(), "torch": torch.__version__,
    }


def machine_text() -> str:
    """The same in a line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
