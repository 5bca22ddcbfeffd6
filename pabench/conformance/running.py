"""A run of the suite inside pytest: from items to verdicts. Registered by `plugin` when there is a URL."""

from __future__ import annotations

import datetime
import os
import sys
import time
import zlib
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pabench import __version__
from pabench.conformance.cases import Case, load_case, write_case
from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.expectations import Expectations, load_expectations
from pabench.conformance.failure import CaseFailed, Failure, failure_text
from pabench.conformance.items import case_name, item_name, requirement_id
from pabench.conformance.profiles import load_profile
from pabench.conformance.prompts import rings_of_prompt_lengths
from pabench.conformance.registry import Requirement, load_registry
from pabench.conformance.results import FILE_NAME, SPEC_VERSION, Header, ResultsWriter
from pabench.conformance.session import EngineSession, open_session
from pabench.conformance.verdicts import NOT_CONFORMING, Outcome, Verdict, exit_code
from pabench.conformance.verify import Ask
from pabench.engines.cleaning import clean
from pabench.engines.client import base_url
from pabench.errors import (
    EXIT_COULD_NOT_RUN,
    EXIT_INTERRUPTED,
    EngineDied,
    EngineError,
    EngineTimeout,
    EngineUnreachable,
    PabenchError,
    RequirementFailed,
    UsageError,
)

VERDICT = pytest.StashKey[Verdict]()
_ENGINE = pytest.StashKey[EngineUnderTest]()
_BEFORE = pytest.StashKey[tuple[Outcome, str]]()  # decided before the test body ran
_MAX_REASON_CHARS = 1000
# How pytest ends when the suite itself did not fail.
_ORDERLY = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
API_KEY_VARIABLE = "PABENCH_API_KEY"  # not an option: those show in the process list


class SuiteRun:
    """All of one run. `verdicts` grows as cases end; `session` exists once the engine has been examined."""

    def __init__(
        self, url: str, *, dialect: str | None, model: str | None, probe: str | None, profile: str, out: Path | None,
        expect: Path | None, ids: list[str], seed: int, replay: Path | None,
    ) -> None:
        self.registry = load_registry()
        if self.registry.spec_version != SPEC_VERSION:
            raise UsageError(f"requirements of version {self.registry.spec_version}, this pabench knows {SPEC_VERSION}")
        self.replayed: Case | None = load_case(replay) if replay else None
        self.profile = load_profile(self.replayed.profile if self.replayed else profile)
        self.seed = self.replayed.seed if self.replayed else seed
        self.expectations = load_expectations(expect, self.registry) if expect else Expectations()
        self.ids = [self.registry[requirement_id].id for requirement_id in ids]
        self.url, self.out = base_url(url), out
        self._spoken = {"dialect_name": dialect, "model": model, "probe": probe}
        self.verdicts: list[Verdict] = []
        self.smoke = "ok"
        self.could_not_run = False
        self._session: EngineSession | None = None
        self._writer: ResultsWriter | None = None
        self._start = time.monotonic()

    @classmethod
    def from_config(cls, config: pytest.Config) -> SuiteRun:
        """From the command line; what is wrong with it becomes pytest's usage error."""
        option = config.getoption
        paths = {name: Path(option(f"--pabench-{name}")) if option(f"--pabench-{name}") else None
                 for name in ("out", "expect", "replay")}
        try:
            return cls(option("--pabench-url"), dialect=option("--pabench-dialect"), model=option("--pabench-model"),
                       probe=option("--pabench-probe"), profile=option("--pabench-profile"),
                       ids=option("--pabench-id"), seed=option("--pabench-seed"), **paths)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error

    @property
    def session(self) -> EngineSession:
        """The engine under test."""
        if self._session is None:
            raise RuntimeError("the engine is examined when tests begin to run")
        return self._session

    def engine_for(self, item: pytest.Item) -> EngineUnderTest:
        """The facade for one test, with its own random numbers: they depend on its name, not on what ran before."""
        if _ENGINE not in item.stash:
            name = f"{requirement_id(item) or item.nodeid} {case_name(item)}"
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            geometry = self.replayed.geometry if self.replayed else None
            item.stash[_ENGINE] = EngineUnderTest(self.session, rng, geometry)
        return item.stash[_ENGINE]

    # Which tests -------------------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Check the markers; keep what is asked for; requirements alone go in the order of their file."""
        self._check_markers(items)
        wanted = [item for item in items if self._wanted(item)]
        if len(wanted) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        if all(requirement_id(item) is not None for item in wanted):
            order = {each: place for place, each in enumerate(self.registry)}
            wanted.sort(key=lambda item: order[str(requirement_id(item))])
        items[:] = wanted

    def _check_markers(self, items: list[pytest.Item]) -> None:
        seen: dict[str, pytest.Item] = {}
        for item in items:
            marked = requirement_id(item)
            if marked is None:
                continue
            if marked not in self.registry:
                raise pytest.UsageError(f"{item.nodeid} is marked with {marked!r}, which is no requirement; "
                                        f"known: {', '.join(self.registry)}")
            other = seen.setdefault(item_name(item), item)
            if other is not item:
                raise pytest.UsageError(f"{item.nodeid} and {other.nodeid} are both {item_name(item)}: "
                                        f"give one a case, @pytest.mark.requirement({marked!r}, case=\"…\")")

    def _wanted(self, item: pytest.Item) -> bool:
        if self.replayed is not None:
            return (requirement_id(item), case_name(item)) == (self.replayed.requirement, self.replayed.case)
        return not self.ids or requirement_id(item) in self.ids

    # Beginning and end -------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Examine the engine and send one short ring, before any test."""
        self.could_not_run = bool(session.testsfailed)  # errors while collecting: pytest itself says which
        if session.config.option.collectonly or self.could_not_run or not session.items:
            return
        try:
            self._session = open_session(
                self.url, self.profile, self.seed, api_key=os.environ.get(API_KEY_VARIABLE), **self._spoken
            )
            self.smoke = self._smoke()
            if self.out is not None:
                self._writer = ResultsWriter(self.out / FILE_NAME)
                self._writer.header(self._header())
        except (PabenchError, OSError) as error:
            self.could_not_run = True
            reason = f"cannot write to {self.out}: {error.strerror}" if isinstance(error, OSError) else str(error)
            pytest.exit(f"could not run: {reason}", returncode=EXIT_COULD_NOT_RUN)

    def _smoke(self) -> str:
        if self.session.spec is None:
            return "ok"
        engine = EngineUnderTest(self.session, np.random.default_rng(self.seed))
        try:
            engine.ask([Ask(rings_of_prompt_lengths(engine.spec, engine.rng, [11])[0], 8, "smoke ring")])
        except (RequirementFailed, EngineError) as error:
            return clean(str(error), _MAX_REASON_CHARS)
        return "ok"

    def _header(self) -> Header:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return Header(SPEC_VERSION, __version__, self.profile.name, self.seed, now, self.url, self._told(), self.smoke)

    def _told(self) -> dict[str, Any]:
        facts, spec = self.session.facts, self.session.spec
        return {
            "dialect": facts.dialect, "model": facts.model, "version": facts.version,
            "max_context_tokens": facts.max_context_tokens, "kv": asdict(facts.kv) if facts.kv else None,
            "capabilities": sorted(facts.capabilities), "probe": spec.preset if spec else None,
        }

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the footer, close the engine; what could not be run never exits 0 or 1, and has no footer."""
        self.could_not_run |= exitstatus not in _ORDERLY
        interrupted = exitstatus == pytest.ExitCode.INTERRUPTED and not self.could_not_run
        code, status = (EXIT_INTERRUPTED, "interrupted") if interrupted else (exit_code(self.verdicts), "complete")
        if self._writer is not None:
            try:
                with self._writer as writer:
                    if not self.could_not_run:
                        writer.footer(code, time.monotonic() - self._start, status)
            except OSError as error:
                self.could_not_run = True
                print(f"could not run: cannot write to {self.out}: {error.strerror}", file=sys.stderr)
        code = EXIT_COULD_NOT_RUN if self.could_not_run else code
        if self._session is not None:
            self._session.close()
        if all(requirement_id(item) is not None for item in session.items) or exitstatus == pytest.ExitCode.OK:
            session.exitstatus = code

    # One test ----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """What need not, or cannot, be asked of this engine is decided here."""
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
        if self.session.gone is not None:
            return Outcome.NOTRUN, f"the engine is gone: {self.session.gone}"
        missing = [need for need in requirement.needs if need not in self.session.facts.capabilities]
        if missing:
            return Outcome.UNSUPPORTED, f"the engine lacks {', '.join(missing)}"
        if requirement.probe and self.session.spec is None:
            return Outcome.UNSUPPORTED, "the engine does not serve the KV probe, so its answers cannot be checked"
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turn what became of a test into a verdict, once: at its call, or where it ended before."""
        report = yield
        requirement = self._requirement(item)
        if requirement is None or VERDICT in item.stash or not (report.when == "call" or call.excinfo):
            return report
        verdict = self._verdict(item, requirement, call)
        item.stash[VERDICT] = verdict
        self.verdicts.append(verdict)
        if self._writer is not None:
            self._writer.row(verdict)
        return _show(report, verdict)

    def _verdict(self, item: pytest.Item, requirement: Requirement, call: pytest.CallInfo[None]) -> Verdict:
        error = call.excinfo.value if call.excinfo else None
        outcome, reason, failure = self._classify(item, error)
        expected = self.expectations.expected_failure(item_name(item), requirement.id, self._circumstances())
        if expected is not None and outcome in NOT_CONFORMING:
            outcome, reason = Outcome.XFAIL, f"{expected.reason} ({expected.issue})"
        elif expected is not None and outcome is Outcome.PASS:
            outcome, reason = Outcome.XPASS, f"passed, but is expected to fail: {expected.reason} ({expected.issue})"
        text, replay, reason = "", "", clean(reason, _MAX_REASON_CHARS)
        if failure is not None:
            text, replay = self._write_failure(item, requirement, outcome, failure)
        return Verdict(requirement.id, case_name(item), requirement.level, outcome, call.duration, reason, text, replay)

    def _classify(self, item: pytest.Item, error: BaseException | None) -> tuple[Outcome, str, Failure | None]:
        """Outcome, one line, and the failure where there is one."""
        if error is None:
            return self._passed(self.engine_for(item))
        if isinstance(error, pytest.skip.Exception):
            outcome, reason = item.stash.get(_BEFORE, (Outcome.UNSUPPORTED, str(error)))
            return outcome, reason, None
        failure = error.failure if isinstance(error, CaseFailed) else Failure("", str(error))
        if not isinstance(error, (RequirementFailed, EngineError, AssertionError)):
            failure = Failure("", f"{type(error).__name__}: {error}", hint="the suite's own fault: please report it")
            return Outcome.ERROR, failure.actual, failure
        self.engine_for(item).cancel()
        lives = self.session.still_lives()
        if isinstance(error, (EngineDied, EngineUnreachable)) or not (lives or isinstance(error, EngineTimeout)):
            reason = failure.actual if lives else f"{failure.actual}; afterwards: {self.session.gone}"
            return Outcome.CRASH, "the engine stopped answering", Failure(failure.expected, reason, hint=failure.hint)
        if isinstance(error, EngineTimeout):
            return Outcome.TIMEOUT, str(error), failure
        return Outcome.FAIL, failure.actual, failure

    def _passed(self, engine: EngineUnderTest) -> tuple[Outcome, str, Failure | None]:
        """A test that came to its end: no PASS without a question."""
        if engine.asked:
            return Outcome.PASS, engine.note, None
        failure = Failure("", "the test asked the engine nothing", hint="the suite's own fault: please report it")
        return Outcome.ERROR, failure.actual, failure

    def _write_failure(
        self, item: pytest.Item, requirement: Requirement, outcome: Outcome, failure: Failure
    ) -> tuple[str, str]:
        """The failure text, and the name of the case file ("" without a folder to write to)."""
        engine = self.engine_for(item)
        case = Case(requirement.id, case_name(item), self.profile.name, self.seed, engine.geometry)

        def text(replay: str) -> str:
            return failure_text(requirement, case.case, outcome, self.session.impl, engine.case, failure, replay)

        if self.out is None:
            return text(""), ""
        name = write_case(self.out, case, impl=self.session.impl, text=text(""), exchanges=engine.exchanges,
                          circumstances=self._told())
        return text(f"pabench replay {self.out / name} --url {self.url}"), name

    def _circumstances(self) -> dict[str, str | None]:
        facts = self.session.facts
        return {"dialect": facts.dialect, "version": facts.version, "profile": self.profile.name,
                "kv_mode": facts.kv.kv_mode if facts.kv else None}

    def _requirement(self, item: pytest.Item) -> Requirement | None:
        marked = requirement_id(item)
        return None if marked is None else self.registry[marked]


def _show(report: pytest.TestReport, verdict: Verdict) -> pytest.TestReport:
    """Make pytest's own words agree with the verdict."""
    if verdict.outcome is Outcome.XFAIL:
        report.outcome, report.wasxfail = "skipped", verdict.reason
    elif verdict.outcome is Outcome.XPASS:
        report.outcome, report.longrepr = "failed", verdict.reason
    elif verdict.text:
        report.outcome, report.longrepr = "failed", verdict.text
    return report
