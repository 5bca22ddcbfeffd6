"""What the measured rows share: models, repetitions in turns, and ratios of what ran in the same turn."""

from __future__ import annotations

import torch

from pabench.claims import Bench
from reference_engine.benchmarks.measurement import Measurement
from reference_engine.benchmarks.serving import Bench as Models
from reference_engine.benchmarks.timing import Spread, in_turns

torch.set_num_threads(1)  # a second one spins, and with anything else on the machine it costs more than it gives
REPEATS = 3
CPU = "a random Llama of 5.6 M parameters on a CPU, in process"
EVEN = (0.8, 1.25)  # what is called comparable, or the same
Arms = dict[str, dict[str, list[float]]]


def models(bench: Bench) -> Models:
    """Models, loaded once for all rows."""
    found = bench.memory.setdefault("models", Models(bench.folder, bench.scale))
    assert isinstance(found, Models), "nothing else is kept under this key"
    return found


def in_repeats(bench: Bench, one: Measurement) -> Arms:
    """Arm -> figure -> its value in each repetition; a measurement that two rows need is run once."""
    if one.mechanism not in bench.memory:
        bench.memory[one.mechanism] = in_turns(one.arms(models(bench)), REPEATS)
    return bench.memory[one.mechanism]  # type: ignore[return-value]  # set above


def ratio(arms: Arms, figure: str, one: str, other: str) -> Spread:
    """`other` over `one`, each repetition by itself: its two runs had the same moment of the machine."""
    return Spread.of([b / a for a, b in zip(arms[one][figure], arms[other][figure], strict=True)])
