"""What became of one test: its outcome, one line, and the failure where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pabench.conformance.failure import CaseFailed, Failure
from pabench.conformance.targets import Subject, Target
from pabench.conformance.verdicts import Outcome
from pabench.errors import EngineDied, EngineError, EngineTimeout, EngineUnreachable, RequirementFailed

_REPORT_IT = "the suite's own fault: please report it"


def classify(
    error: BaseException | None, target: Target, subject: Callable[[], Subject], before: tuple[Outcome, str] | None
) -> tuple[Outcome, str, Failure | None]:
    """Of a test that raised `error`, or came to its end; `before` was decided before its body ran."""
    if error is None:
        return _passed(subject())
    if isinstance(error, pytest.skip.Exception):
        outcome, reason = before or (Outcome.UNSUPPORTED, str(error))
        return outcome, reason, None
    failure = error.failure if isinstance(error, CaseFailed) else Failure("", str(error))
    if not isinstance(error, (RequirementFailed, EngineError, AssertionError)):
        failure = Failure("", f"{type(error).__name__}: {error}", hint=_REPORT_IT)
        return Outcome.ERROR, failure.actual, failure
    subject().cancel()
    if target.still_lives():
        outcome = (Outcome.CRASH if isinstance(error, (EngineDied, EngineUnreachable)) else
                   Outcome.TIMEOUT if isinstance(error, EngineTimeout) else Outcome.FAIL)
        return outcome, failure.actual, failure
    afterwards = f"{failure.actual}; afterwards: {target.gone}"
    end = target.recover(subject())
    if isinstance(error, EngineTimeout):
        return Outcome.TIMEOUT, failure.actual, replace(failure, end=end)
    return Outcome.CRASH, "it stopped answering", replace(failure, actual=afterwards, end=end)


def _passed(subject: Subject) -> tuple[Outcome, str, Failure | None]:
    """A test that came to its end: no PASS without a question."""
    if subject.asked and subject.unproven:
        return Outcome.UNSUPPORTED, subject.unproven, None
    if subject.asked:
        return Outcome.PASS, subject.note, None
    failure = Failure("", "the test asked the engine nothing", hint=_REPORT_IT)
    return Outcome.ERROR, failure.actual, failure
