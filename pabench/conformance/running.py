"""A run of the suite inside pytest: from items to verdicts. Registered by `plugin` when there is something to ask."""

from __future__ import annotations

import datetime
import sys
import time
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from pabench import __version__
from pabench.conformance.cases import Case, load_case, replay_command, write_case
from pabench.conformance.expectations import Expectations, load_expectations
from pabench.conformance.failure import Failure, failure_text
from pabench.conformance.interrupts import interrupts_held
from pabench.conformance.items import (
    case_name,
    cases_of_level,
    check_markers,
    in_order,
    item_name,
    requirement_id,
    ships,
)
from pabench.conformance.judging import classify
from pabench.conformance.levels import level_of_id
from pabench.conformance.profiles import load_profile
from pabench.conformance.registry import Requirement, load_registry
from pabench.conformance.reported import is_ours, show
from pabench.conformance.results import FILE_NAME, SPEC_VERSION, Header, ResultsWriter, check_new, suite_digest
from pabench.conformance.target_options import target
from pabench.conformance.targets import Subject, Target
from pabench.conformance.verdicts import NOT_CONFORMING, Outcome, Verdict, exit_code, replay_code
from pabench.engines.cleaning import clean
from pabench.errors import (
    EXIT_COULD_NOT_RUN,
    EXIT_INTERRUPTED,
    EXIT_OK,
    PabenchError,
    UsageError,
)

VERDICT = pytest.StashKey[Verdict]()
_SUBJECT = pytest.StashKey[Subject]()
_BEFORE = pytest.StashKey[tuple[Outcome, str]]()  # decided before the test body ran
_MAX_REASON_CHARS = 1000
# How pytest ends when the suite itself did not fail.
_ORDERLY = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)


class SuiteRun:
    """All of one run. `verdicts` grows as cases end; `target` is opened when tests begin to run."""

    def __init__(
        self, target: Target, *, profile: str, out: Path | None, expect: Path | None, ids: list[str], seed: int,
        replay: Path | None, patience: float = 1.0,
    ) -> None:
        self.registry = load_registry()
        if self.registry.spec_version != SPEC_VERSION:
            raise UsageError(f"requirements of version {self.registry.spec_version}, this pabench knows {SPEC_VERSION}")
        self.replayed: Case | None = load_case(replay) if replay else None
        self.profile = load_profile(self.replayed.profile if self.replayed else profile).patient(patience)
        self.seed = self.replayed.seed if self.replayed else seed
        self.expectations = load_expectations(expect, self.registry) if expect else Expectations()
        self.ids = [self.registry[requirement_id].id for requirement_id in ids]
        self.target, self.out = target, out
        for each in [*self.ids, *([self.replayed.requirement] if self.replayed else [])]:
            if level_of_id(each) != target.level:
                raise UsageError(f"{each} is not asked of level {target.level}, which {target.locator} is of")
        self.verdicts: list[Verdict] = []
        self.smoke = "ok"
        self.could_not_run = False
        self._own_failed = False  # a test that decides no requirement
        self._narrowed = False
        self._all_cases: list[str] = []  # of the level; none where a part of it is asked
        self._begun = self._cut_short = False
        self.news: Callable[[str], None] = lambda text: None  # what takes long; shown by `live`
        self._writer: ResultsWriter | None = None
        self._start = time.monotonic()

    @classmethod
    def from_config(cls, config: pytest.Config) -> SuiteRun:
        """From the command line; what is wrong with it becomes pytest's usage error."""
        option = config.getoption
        paths = {name: Path(option(f"--pabench-{name}")) if option(f"--pabench-{name}") else None
                 for name in ("out", "expect", "replay")}
        try:
            return cls(target(config), profile=option("--pabench-profile"), ids=option("--pabench-id"),
                       seed=option("--pabench-seed"), patience=option("--pabench-patience"), **paths)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error

    def subject_for(self, item: pytest.Item) -> Subject:
        """What one test holds, with random numbers of its own: they depend on its name, not on what ran before."""
        if _SUBJECT not in item.stash:
            name = f"{requirement_id(item) or item.nodeid} {case_name(item)}"
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            item.stash[_SUBJECT] = self.target.subject(rng, self.replayed.drawn if self.replayed else None)
        return item.stash[_SUBJECT]

    # Which tests -------------------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Check the markers; keep what is asked for, of this level; requirements go in their file's order."""
        check_markers(items, self.registry)
        wanted = [item for item in items if self._wanted(item)]
        if len(wanted) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = in_order(wanted, self.registry)
        if not (self.ids or self._narrowed or self.replayed):
            self._all_cases = cases_of_level(items, self.target.level, self.registry)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """By -k and the like: what this run leaves out itself it does not want."""
        self._narrowed |= any(map(self._wanted, items))

    def _wanted(self, item: pytest.Item) -> bool:
        if self.replayed is not None:
            return (requirement_id(item), case_name(item)) == (self.replayed.requirement, self.replayed.case)
        marked = requirement_id(item)
        if marked is not None and level_of_id(marked) != self.target.level:
            return False
        return not self.ids or marked in self.ids

    @property
    def duration_s(self) -> float:
        """Since the run was set up, starts of the engine included."""
        return time.monotonic() - self._start

    # Beginning and end -------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Make ready what is asked, and ask one small thing, before any test."""
        self.could_not_run = bool(session.testsfailed)  # errors while collecting: pytest itself says which
        if session.config.option.collectonly or self.could_not_run or not session.items:
            return
        try:
            if self.out is not None:
                check_new(self.out)
            self.target.open(self.profile, self.seed, self.news)
            self.smoke = self.target.smoke()
            if self.out is not None:
                self._writer = ResultsWriter(self.out / FILE_NAME)
                self._writer.header(self._header())
        except (PabenchError, OSError) as error:
            self._give_up(f"cannot write to {self.out}: {error.strerror}" if isinstance(error, OSError) else str(error))
        self._begun = True

    def _give_up(self, reason: str) -> NoReturn:
        self.could_not_run = True
        pytest.exit(f"could not run: {reason}", returncode=EXIT_COULD_NOT_RUN)

    def _header(self) -> Header:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        suite = suite_digest(self._all_cases, self.profile.name) if self._all_cases else ""
        return Header(SPEC_VERSION, __version__, self.profile.name, self.seed, now, self.target.url, self.target.told(),
                      self.smoke, patience=self.profile.patience, suite=suite)

    @property
    def judged(self) -> int:
        """The exit code that the verdicts make; never 0 where not all was asked."""
        code = (exit_code if self.replayed is None else replay_code)(self.verdicts)
        return EXIT_COULD_NOT_RUN if self._cut_short and code == EXIT_OK else code

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
        """The end, also where what the others show finds no reader: an engine must not be left running."""
        try:
            if self._begun and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                self._tell_not_run(session)
            return (yield)
        finally:
            self._end(session, exitstatus)

    def _tell_not_run(self, session: pytest.Session) -> None:
        """Where pytest has ended the run itself, as with -x: a row for each case that it has left out."""
        for item in session.items:
            requirement = self._requirement(item)
            if requirement is not None and VERDICT not in item.stash:
                self._cut_short = True
                reason = f"not reached: {clean(str(session.shouldfail or 'pytest ended the run'))}"
                self._add(item, Verdict(requirement.id, case_name(item), requirement.level, Outcome.NOTRUN,
                                        reason=reason))

    def _add(self, item: pytest.Item, verdict: Verdict) -> None:
        with interrupts_held():  # else the footer counts a row that the file lacks, or that is cut
            item.stash[VERDICT] = verdict
            self.verdicts.append(verdict)
            if self._writer is not None:
                self._writer.row(verdict)

    def _end(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the footer, close the target; what could not be run never exits 0 or 1, and has no footer."""
        self.could_not_run |= exitstatus not in _ORDERLY
        interrupted = exitstatus == pytest.ExitCode.INTERRUPTED and not self.could_not_run
        code, status = (EXIT_INTERRUPTED, "interrupted") if interrupted else (self.judged, "complete")
        if self._writer is not None:
            try:
                with self._writer as writer:
                    if not self.could_not_run:
                        writer.footer(code, self.duration_s, status, self.target.starts())
            except OSError as error:
                self.could_not_run = True
                print(f"could not run: cannot write to {self.out}: {error.strerror}", file=sys.stderr)
        if is_ours(session, exitstatus, own_failed=self._own_failed, could_not_run=self.could_not_run):
            session.exitstatus = EXIT_COULD_NOT_RUN if self.could_not_run else code
        self.target.close()

    # One test ----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """What need not, or cannot, be asked is decided here."""
        requirement = self._requirement(item)
        if requirement is None:
            return
        decided = self._decide_before(item, requirement)
        if decided is not None:
            item.stash[_BEFORE] = decided
            pytest.skip(decided[1])

    def _decide_before(self, item: pytest.Item, requirement: Requirement) -> tuple[Outcome, str] | None:
        disabled = self.expectations.disabled_reason(item_name(item), requirement.id)
        if disabled is not None:
            return Outcome.DISABLED, disabled
        lacks = self.target.lacks(requirement)
        if lacks:
            return Outcome.UNSUPPORTED, lacks
        self.target.make_ready()
        return None if self.target.gone is None else (Outcome.NOTRUN, f"the engine is gone: {self.target.gone}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """A case is bounded in time."""
        if self._requirement(item) is None:
            return (yield)
        try:
            with self.target.limited():
                return (yield)
        except UsageError as error:
            if self.replayed is None:
                raise
            self._give_up(str(error))  # a case file that cannot be asked again

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turn what became of a test into a verdict, once: at its call, or where it ended before."""
        report = yield
        requirement = self._requirement(item)
        self._own_failed |= requirement is None and report.failed
        if requirement is None or VERDICT in item.stash or not (report.when == "call" or call.excinfo):
            return report
        verdict = self._verdict(item, requirement, call)
        self._add(item, verdict)
        return show(report, verdict)

    def _verdict(self, item: pytest.Item, requirement: Requirement, call: pytest.CallInfo[None]) -> Verdict:
        error = call.excinfo.value if call.excinfo else None
        before = item.stash.get(_BEFORE, None)
        outcome, reason, failure = classify(error, self.target, lambda: self.subject_for(item), before)
        expected = self.expectations.expected_failure(item_name(item), requirement.id, self._circumstances())
        if expected is not None and outcome in NOT_CONFORMING:
            outcome, reason = Outcome.XFAIL, f"{expected.reason} ({expected.issue})"
        elif expected is not None and outcome is Outcome.PASS:
            outcome, reason = Outcome.XPASS, f"passed, but is expected to fail: {expected.reason} ({expected.issue})"
        text, replay, reason = "", "", clean(reason, _MAX_REASON_CHARS)
        if failure is not None:
            text, replay = self._write_failure(item, requirement, outcome, failure)
        return Verdict(requirement.id, case_name(item), requirement.level, outcome, call.duration, reason, text, replay)

    def _write_failure(
        self, item: pytest.Item, requirement: Requirement, outcome: Outcome, failure: Failure
    ) -> tuple[str, str]:
        """The failure text, and the name of the case file ("" without a folder to write to)."""
        subject, impl = self.subject_for(item), self.target.impl
        case = Case(requirement.id, case_name(item), self.profile.name, self.seed, subject.drawn())

        def text(replay: str) -> str:
            return failure_text(requirement, case.case, outcome, impl, subject.case, failure, replay)

        if self.out is None:
            return text(""), ""
        name = write_case(self.out, case, impl=impl, text=text(""), evidence=subject.evidence(),
                          circumstances=self.target.told())
        test = None if ships(item) else item.path
        return text(replay_command(self.out / name, self.target.locator, self.profile.patience, test)), name

    def _circumstances(self) -> dict[str, str | None]:
        return {"profile": self.profile.name, **self.target.circumstances()}

    def _requirement(self, item: pytest.Item) -> Requirement | None:
        marked = requirement_id(item)
        return None if marked is None else self.registry[marked]
