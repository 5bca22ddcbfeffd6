"""What `pabench conform` shows: each verdict as it falls, then a table, the failures, and one concluding line.

A pytest plugin in place of pytest's own terminal reporter, added by `runner`.
"""

from __future__ import annotations

import signal
import sys

import pytest
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pabench.conformance.cases import from_here
from pabench.conformance.plugin import SUITE_RUN
from pabench.conformance.running import SuiteRun
from pabench.conformance.verdicts import Outcome, Verdict, by_requirement, not_compared
from pabench.errors import EXIT_COULD_NOT_RUN, EXIT_NOT_CONFORMING, EXIT_OK

_STYLES = {Outcome.PASS: "green", Outcome.XFAIL: "yellow", Outcome.UNSUPPORTED: "dim", Outcome.DISABLED: "dim",
           Outcome.NOTRUN: "magenta", Outcome.ERROR: "magenta"}
_OTHER = "bold red"
_PIPE_WIDTH = 140
_CONCLUSIONS = {EXIT_OK: ("conforming", "bold green"), EXIT_NOT_CONFORMING: ("not conforming", _OTHER)}
_OF_A_REPLAY = {EXIT_OK: ("holds now", "bold green"), EXIT_NOT_CONFORMING: ("still fails", _OTHER)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `pabench conform --quiet` asks for."""
    parser.addoption("--pabench-at-end", action="store_true", help="show nothing before the run has ended")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Show the run, if there is one; a termination stops the engine too, as an interrupt does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = config.pluginmanager.get_plugin(SUITE_RUN)
    if run is not None:
        view = Live(run, _console(), at_end=config.getoption("--pabench-at-end"))
        config.pluginmanager.register(view, "pabench-live")


class Live:
    """Shows one run on one console; `at_end`: nothing of it before."""

    def __init__(self, run: SuiteRun, console: Console, *, at_end: bool) -> None:
        self._run = run
        self._console = console
        self._at_end = at_end
        self._shown = 0
        run.news = self._tell
        self._progress = Progress(SpinnerColumn(), TextColumn("{task.completed}/{task.total} {task.description}"),
                                  TimeElapsedColumn(), console=console, transient=True)
        self._task = self._progress.add_task("", total=0)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Begin to count."""
        self._progress.update(self._task, total=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Name what runs now."""
        if self._console.is_terminal and not self._at_end:
            self._progress.start()
        self._progress.update(self._task, description=nodeid.rpartition("::")[2])

    def pytest_runtest_logfinish(self) -> None:
        """Show the verdicts that have fallen."""
        if self._at_end:
            return
        for verdict in self._run.verdicts[self._shown:]:
            self._console.print(_line(verdict), soft_wrap=True)
        self._shown = len(self._run.verdicts)
        self._progress.advance(self._task)

    def _tell(self, text: str) -> None:
        if not self._at_end:
            self._console.print(Text(text, style="dim"), soft_wrap=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test file that cannot be read."""
        if report.failed:
            print(f"could not run: {report.longreprtext}", file=sys.stderr)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Why the run ends early."""
        self._stop()
        reason = str(excinfo.value) if isinstance(excinfo.value, pytest.exit.Exception) else "interrupted"
        print(reason, file=sys.stderr)

    def pytest_internalerror(self, excrepr: object) -> None:
        """A fault of the suite."""
        self._stop()
        print(f"the suite failed: {excrepr}", file=sys.stderr)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Table, failures, conclusion."""
        self._stop()
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            print("could not run: the suite has no test for this", file=sys.stderr)
        if not self._run.verdicts:
            return
        for verdict in self._run.verdicts:
            if verdict.text:
                self._console.print()
                self._console.print(Text(verdict.text), soft_wrap=True)
        self._console.print()
        self._show_requirements()
        if self._run.smoke != "ok":
            self._console.print(Text(f"The harness check failed before all else, so read the failures with it in mind: "
                                     f"{self._run.smoke}", style=_OTHER))
        conclusion = _conclusion(self._run)
        if exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
            what = "interrupted" if exitstatus == pytest.ExitCode.INTERRUPTED else "could not run: the suite failed"
            done = f"{len(self._run.verdicts)} of {len(session.items)} cases"
            conclusion = Text(f"{what} after {done}", style=_OTHER)
        self._console.print(conclusion, soft_wrap=True)
        if self._run.out is not None:
            self._console.print(Text(f"results: {from_here(self._run.out)}"), soft_wrap=True)

    def _show_requirements(self) -> None:
        """A row each, with its note beside it, or on a line of its own where there is no room beside."""
        rows = by_requirement(self._run.verdicts)
        beside = self._console.width >= _PIPE_WIDTH
        table = Table(box=None, pad_edge=False)
        for heading in ("requirement", "level", "verdict", "passed/asked/all"):
            table.add_column(heading, no_wrap=True)
        if beside:
            table.add_column("note", overflow="fold")
        for row in rows:
            notes = [Text(row.reason, style="dim")] if beside else []
            table.add_row(Text(row.requirement), row.level, Text(row.outcome, style=_STYLES.get(row.outcome, _OTHER)),
                          f"{row.passed}/{row.asked}/{row.total}", *notes)
        self._console.print(table)
        for row in [] if beside else rows:
            if row.reason:
                self._console.print(Text(f"{row.requirement}: {row.reason}", style="dim"), soft_wrap=True)

    def _stop(self) -> None:
        if self._console.is_terminal:
            self._progress.stop()


def _console() -> Console:
    """Standard output; a file or pipe has no width of its own. Where it is not UTF-8, an escape stands for what it has
    no character for.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _line(verdict: Verdict) -> Text:
    line = Text(f"{verdict.outcome:<11}", style=_STYLES.get(verdict.outcome, _OTHER))
    line.append(f"  {verdict.name}", style="default")
    line.append(f"  {verdict.duration_s:.1f} s", style="dim")
    if verdict.reason and not verdict.text:
        line.append(f"  {verdict.reason}", style="dim")
    return line


def _conclusion(run: SuiteRun) -> Text:
    rows = by_requirement(run.verdicts)
    counts = ", ".join(f"{sum(row.outcome is outcome for row in rows)} {outcome}" for outcome in Outcome
                       if any(row.outcome is outcome for row in rows))
    code = run.judged
    word, style = (_CONCLUSIONS if run.replayed is None else _OF_A_REPLAY).get(code, ("could not decide", _OTHER))
    noun = "requirement" if len(rows) == 1 else "requirements"
    reason = not_compared(run.verdicts) if code == EXIT_COULD_NOT_RUN else ""
    why = f"; no answer could be judged: {reason}" if reason else ""
    return Text(f"{word}: {run.target.impl}, {len(rows)} {noun}: {counts}{why} ({_took(run)})", style=style)


def _took(run: SuiteRun) -> str:
    """Seconds, and how many of them are the engine's own."""
    starts, starting_s = run.target.starts()
    of_them = f", {starting_s:.0f} of them for {starts} start{'s' if starts > 1 else ''} of the engine"
    return f"{run.duration_s:.0f} s{of_them if starts else ''}"
