"""The ten verdicts, how those of many cases become one, and the exit code of a run.

    PASS         the requirement held
    FAIL         it did not
    CRASH        the engine stopped answering while the case ran
    TIMEOUT      no answer within the stated time
    ERROR        the suite's own fault: says nothing about the engine
    UNSUPPORTED  the engine, or the model it serves, cannot be asked this; never counted as a pass
    DISABLED     an operator said not to run it
    XFAIL        failed, as the expectations file says
    XPASS        passed, although the expectations file says that it fails
    NOTRUN       not reached, because the engine was gone
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pabench.errors import EXIT_COULD_NOT_RUN, EXIT_NOT_CONFORMING, EXIT_OK


class Outcome(StrEnum):
    """One word for what became of a case. In order of severity: the worst first."""

    CRASH = "CRASH"
    TIMEOUT = "TIMEOUT"
    FAIL = "FAIL"
    XPASS = "XPASS"
    ERROR = "ERROR"
    NOTRUN = "NOTRUN"
    XFAIL = "XFAIL"
    PASS = "PASS"
    UNSUPPORTED = "UNSUPPORTED"
    DISABLED = "DISABLED"


# The engine was asked and did not do it.
NOT_CONFORMING = frozenset({Outcome.CRASH, Outcome.TIMEOUT, Outcome.FAIL})
# The engine was really asked, whatever came of it.
ASKED = NOT_CONFORMING | {Outcome.PASS, Outcome.XFAIL, Outcome.XPASS}
_SEVERITY = {outcome: rank for rank, outcome in enumerate(Outcome)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case of one requirement: a row of verdicts.jsonl.

    `text` is the whole failure text, as shown to an implementer; it quotes the engine and is hostile: escape it.
    """

    requirement: str            # e.g. "http/ring-exact"
    case: str                   # e.g. "kB+1"; "" where the requirement has a single case
    level: str                  # MUST | SHOULD | INFO
    outcome: Outcome
    duration_s: float = 0.0
    reason: str = ""            # one line: why not PASS, or a note on what was exercised
    text: str = ""
    replay: str = ""            # name of the case file beside verdicts.jsonl

    @property
    def name(self) -> str:
        """Requirement and case in one word, as expectations and the terminal spell it."""
        return f"{self.requirement}[{self.case}]" if self.case else self.requirement


@dataclass(frozen=True, slots=True)
class RequirementVerdict:
    """All cases of one requirement: the worst outcome, and the cell passed/asked/all of the matrix."""

    requirement: str
    level: str
    outcome: Outcome
    passed: int                 # cases that held
    asked: int                  # cases that the engine was really asked
    total: int
    reason: str


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome that stands for all: CRASH before TIMEOUT before FAIL … before UNSUPPORTED before DISABLED."""
    return min(outcomes, key=_SEVERITY.__getitem__)


def by_requirement(rows: Iterable[Verdict]) -> list[RequirementVerdict]:
    """One verdict a requirement, in the order in which the requirements first appear."""
    groups: dict[str, list[Verdict]] = {}
    for row in rows:
        groups.setdefault(row.requirement, []).append(row)
    return [_summarise(requirement, group) for requirement, group in groups.items()]


def _summarise(requirement: str, rows: list[Verdict]) -> RequirementVerdict:
    outcome = worst(row.outcome for row in rows)
    return RequirementVerdict(
        requirement=requirement,
        level=rows[0].level,
        outcome=outcome,
        passed=sum(row.outcome is Outcome.PASS for row in rows),
        asked=sum(row.outcome in ASKED for row in rows),
        total=len(rows),
        reason=next(row.reason for row in rows if row.outcome is outcome),
    )


_PLAINEST = "http/ring-exact"  # one prompt, one answer: where this cannot be judged, no text can
# But those of a probe with windows, which is asked nothing else.
_WINDOWED = ("http/sliding-window-exact", "http/mixed-windows-exact")


def replay_code(rows: Iterable[Verdict]) -> int:
    """As `exit_code`, of a case that is asked again: 1 where it still fails, at whatever level."""
    rows = list(rows)
    return EXIT_NOT_CONFORMING if any(row.outcome in NOT_CONFORMING for row in rows) else exit_code(rows)


def exit_code(rows: Iterable[Verdict]) -> int:
    """0 conforming, 1 not conforming, 2 could not run.

    A MUST that failed, or any XPASS, is 1: a proven fault outweighs everything else. Else an ERROR or a NOTRUN of
    a MUST is 2, and so is a run in which no case passed or failed as expected, or which could not hold any answer
    against anything (`not_compared`): silence is not conformity.
    A SHOULD or INFO that failed is shown and changes nothing.
    """
    rows = list(rows)
    musts = [row for row in rows if row.level == "MUST"]
    if any(row.outcome in NOT_CONFORMING for row in musts) or any(row.outcome is Outcome.XPASS for row in rows):
        return EXIT_NOT_CONFORMING
    if any(row.outcome in (Outcome.ERROR, Outcome.NOTRUN) for row in musts):
        return EXIT_COULD_NOT_RUN
    if not any(row.outcome in ASKED for row in rows) or not_compared(rows):
        return EXIT_COULD_NOT_RUN
    return EXIT_OK


def not_compared(rows: Sequence[Verdict]) -> str:
    """Why no answer of an engine could be held against anything, where that was to be done; else ""."""
    plainest = [row for row in rows if row.requirement == _PLAINEST]
    windowed = any(row.requirement in _WINDOWED and row.outcome in ASKED for row in rows)
    if not plainest or windowed or any(row.outcome is not Outcome.UNSUPPORTED for row in plainest):
        return ""
    return plainest[0].reason or "it is not told why"
