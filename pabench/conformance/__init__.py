"""Conformance: requirements, verdicts, and the suite that comes to them.

    registry      suites/requirements.toml, checked
    verdicts      the ten verdicts, and the exit code of a run
    results       verdicts.jsonl: header, rows, footer
"""

from pabench.conformance.registry import Registry, Requirement, load_registry
from pabench.conformance.results import Footer, Header, Results, load_results
from pabench.conformance.verdicts import Outcome, RequirementVerdict, Verdict

__all__ = [
    "Footer",
    "Header",
    "Outcome",
    "Registry",
    "Requirement",
    "RequirementVerdict",
    "Results",
    "Verdict",
    "load_registry",
    "load_results",
]
