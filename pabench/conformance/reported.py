"""What pytest is told of a run of the suite: each verdict, and whose word its exit status is."""

from __future__ import annotations

import pytest

from pabench.conformance.items import requirement_id
from pabench.conformance.verdicts import Outcome, Verdict


def show(report: pytest.TestReport, verdict: Verdict) -> pytest.TestReport:
    """Make pytest's own words agree with the verdict."""
    if verdict.outcome is Outcome.XFAIL:
        report.outcome, report.wasxfail = "skipped", verdict.reason
    elif verdict.outcome is Outcome.XPASS:
        report.outcome, report.longrepr = "failed", verdict.reason
    elif verdict.text:
        report.outcome, report.longrepr = "failed", verdict.text
    return report


def is_ours(session: pytest.Session, exitstatus: int, *, own_failed: bool, could_not_run: bool) -> bool:
    """Whether the verdicts make the exit status.

    Not where a test that decides no requirement failed, nor where there are such tests alone: that is pytest's to tell.
    A SHOULD that failed is a failed test to pytest too, and changes nothing.
    """
    decides = [requirement_id(item) is not None for item in session.items]
    if all(decides):
        return True
    well = exitstatus == pytest.ExitCode.OK or (exitstatus == pytest.ExitCode.TESTS_FAILED and not own_failed)
    return well and (any(decides) or could_not_run)
