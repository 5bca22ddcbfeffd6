"""The gate: is a candidate worse than a baseline, and how sure is that? docs/gate.md."""

from pabench.analysis.sides import Samples
from pabench.gate.decide import Decision, MetricVerdict, decide
from pabench.gate.live import GateRun, Side
from pabench.gate.policy import Policy, load_policy
from pabench.gate.stored import judge_folders

__all__ = [
    "Decision", "GateRun", "MetricVerdict", "Policy", "Samples", "Side", "decide", "judge_folders", "load_policy",
]
