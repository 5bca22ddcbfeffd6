"""Conformance: requirements, verdicts, and the suite that comes to them, at three levels.

    registry       suites/requirements.toml, checked
    verdicts       the ten verdicts, and the exit code of a run
    results        verdicts.jsonl: header, rows, footer
    profiles       smoke, ci, full: how much of everything
    expectations   what is known to fail, or not to be run
    levels         http, alloc, kernel: what is asked, and which level an implementation is of
    targets        what a run asks, as the machinery sees it
    engine_target  an engine at a URL        implementation  one in process, by its adapter
    alloc/         the allocator level       kernel/         the kernel level

Of the http level:

    session        one engine for the length of a run
    engine         `engine`, what a test holds: bounded, recorded calls; described, metered: what it is, and shows
    prompts        rings and forks of given lengths
    verify         from an answer to a failure      selfcheck      the same without the probe

Of all:

    failure        the failure text
    cases          case-….json, to ask a failed case again
    plugin         the pytest plugin: options, marker, fixtures
    running        a run inside pytest: from tests to verdicts
    target_options what the options name                judging    what became of one test
    crashed        a run whose process a native fault has ended
    interrupts     what waits for them               comparable     whether results are of one suite
    live           what `pabench conform` shows
    runner         run_suite and replay_case: the suite in a pytest of its own

Importing this package, or the plugin, brings nothing heavy: every pytest run with pabench installed does it.
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
