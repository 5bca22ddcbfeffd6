"""The engine's own scheduler and allocators under a virtual clock: no model, a step-time law instead."""

from reference_engine.simulation.law import StepLaw
from reference_engine.simulation.outcome import Outcome
from reference_engine.simulation.simulator import Simulator
from reference_engine.simulation.workload import Workload, from_trace, synthetic

__all__ = ["Outcome", "Simulator", "StepLaw", "Workload", "from_trace", "synthetic"]
