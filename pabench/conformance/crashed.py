"""A run whose process a native fault has ended: kernels run in it, and one that reads past a table may take it along.

    child    plugin of the suite's own pytest: notes in a journal what it is to ask, and each case as it begins
    parent   `conclude`: the case that ran is a CRASH, what was not reached is NOTRUN, and the results have their end
"""

from __future__ import annotations

import datetime
import json
import shlex
import signal
import sys
from pathlib import Path

import pytest

from pabench.conformance.cases import from_here
from pabench.conformance.failure import Failure, failure_text
from pabench.conformance.items import case_name, requirement_id
from pabench.conformance.registry import load_registry
from pabench.conformance.results import FILE_NAME, Header, ResultsWriter, load_begun
from pabench.conformance.verdicts import Outcome, Verdict, exit_code
from pabench.errors import EXIT_COULD_NOT_RUN, EXIT_NOT_CONFORMING, UsageError

# What a fault of native code is ended by. Others come from outside, as of a machine without memory: no verdict.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
_Named = tuple[str, str]  # requirement and case


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the journal is kept."""
    parser.addoption("--pabench-journal", metavar="FILE", help="what is to be asked, and what has begun")


def pytest_collection_finish(session: pytest.Session) -> None:
    """All that is to be asked, in the first line."""
    _note(session.config, [_named(item) for item in session.items if requirement_id(item)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """What begins now, in a line of its own."""
    _note(item.config, _named(item))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing runs any more: what ends the process now is no case."""
    _note(session.config, None)


def _note(config: pytest.Config, what: object) -> None:
    journal = config.getoption("--pabench-journal")
    if journal:
        with Path(journal).open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")


def _named(item: pytest.Item) -> _Named:
    return str(requirement_id(item)), case_name(item)


def conclude(number: int, journal: Path, out: Path | None, *, quiet: bool) -> int:
    """The exit code of a run whose process signal `number` has ended; its results, in `out`, are made whole.

    Without results, of a case that was asked again, it still fails. What comes from outside is told, and no verdict.
    """
    name = signal.Signals(number).name
    asked, began = _noted(journal)
    told = f"{name} ended the process of the suite" + (f", after {_words(began)} had begun" if began else "")
    try:
        if name not in _FAULTS or began is None:
            raise UsageError(told)
        if out is not None:
            return _conclude(asked, began, name, out, quiet=quiet)
    except UsageError as error:
        print(f"could not run: {error}", file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    print(f"still fails: {told}")
    return EXIT_NOT_CONFORMING


def _conclude(asked: list[_Named], began: _Named, end: str, out: Path, *, quiet: bool) -> int:
    """Write the rows that are missing, and the footer. Raises UsageError where it is not the implementation's fault."""
    header, rows = load_begun(out / FILE_NAME)
    there = {(row.requirement, row.case) for row in rows}
    if header.url or began in there:  # an engine has a process of its own; and a case that was judged did not end this
        raise UsageError(f"{end} ended the process of the suite, after {_words(began)} had begun")
    missing = [_verdict(each, each == began, end, _words(began), header) for each in asked if each not in there]
    code = exit_code([*rows, *missing])
    started = datetime.datetime.fromisoformat(header.started)
    with ResultsWriter(out / FILE_NAME, rows) as writer:
        for verdict in missing:
            writer.row(verdict)
        writer.footer(code, (datetime.datetime.now(datetime.UTC) - started).total_seconds(), "complete")
    if not quiet:
        print("\n".join(verdict.text for verdict in missing if verdict.text))
        print(f"\n{end} ended the process in {_words(began)}; {len(missing) - 1} cases were not reached\n"
              f"results: {from_here(out)}")
    return code


def _noted(journal: Path) -> tuple[list[_Named], _Named | None]:
    """What was to be asked, and the last case that began; None before the first, and when all had ended."""
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    asked, *begun = [json.loads(line) for line in lines] or [[]]
    return [(requirement, case) for requirement, case in asked], tuple(begun[-1]) if begun and begun[-1] else None


def _words(named: _Named) -> str:
    requirement, case = named
    return f"{requirement}[{case}]" if case else requirement


def _verdict(named: _Named, is_culprit: bool, end: str, culprit: str, header: Header) -> Verdict:
    requirement = load_registry()[named[0]]
    if not is_culprit:
        return Verdict(*named, requirement.level, Outcome.NOTRUN, reason=f"{end} had ended the process in {culprit}")
    actual = f"{end} ended the process of the suite, and of the implementation"
    failure = Failure("the implementation lives on, whatever it makes of the case", actual,
                      hint="native code that reads or writes where nothing is; where it is known and to be left out, "
                           "disable the requirement with --expect")
    again = ["pabench", "conform", "--impl", str(header.engine.get("impl")), "--profile", header.profile,
             "--seed", str(header.seed), "--id", named[0]]
    text = failure_text(requirement, named[1], Outcome.CRASH, str(header.engine.get("label")), "", failure,
                        shlex.join(again))
    return Verdict(*named, requirement.level, Outcome.CRASH, reason=actual, text=text)
