"""What an implementer reads when a requirement does not hold: always the same lines, in the same order."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NoReturn

from pabench.conformance.registry import Requirement
from pabench.conformance.verdicts import Outcome
from pabench.engines.cleaning import clean
from pabench.errors import RequirementFailed

_MAX_CHARS = 4000  # far above what the suite itself says


@dataclass(frozen=True, slots=True)
class Failure:
    """The smallest account of a failed case. Each text is made one line that cannot steer a terminal: it may quote
    the engine, which must not forge a line of the failure text."""

    expected: str
    actual: str
    reads: str = ""  # what the KV probe says was read instead, and by which layers and heads
    hint: str = ""   # where to look
    end: str = ""    # how the engine ended, and what of

    def __post_init__(self) -> None:
        """Clean all."""
        for each in fields(self):
            object.__setattr__(self, each.name, clean(getattr(self, each.name), _MAX_CHARS))


class CaseFailed(RequirementFailed):
    """A requirement that does not hold, with the lines of its failure text."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"expected {failure.expected}; got {failure.actual}")
        self.failure = failure


def fail(expected: str, actual: str, *, reads: str = "", hint: str = "") -> NoReturn:
    """Raise CaseFailed."""
    raise CaseFailed(Failure(expected, actual, reads, hint))


def not_again(error: RequirementFailed) -> CaseFailed:
    """`error` of a case that held when it was asked again: a failure all the same, and it says so."""
    failure = error.failure if isinstance(error, CaseFailed) else Failure("it holds", str(error))
    said = f"{failure.actual}; failed once, held when asked again: not deterministic"
    return CaseFailed(replace(failure, actual=said))


def failure_text(
    requirement: Requirement, case_name: str, outcome: Outcome, impl: str, case: str, failure: Failure, replay: str
) -> str:
    """The failure text: requirement, its sentence, then case / expected / actual / reads / end / hint / replay.

    `impl` names what is under test, `case` what was asked (it may have several lines, all of the suite's own words),
    `replay` the command that asks it again.
    """
    name = f"{requirement.id}[{case_name}]" if case_name else requirement.id
    head = f"{outcome} {name}  ({requirement.level}, since {requirement.since})      impl: {impl}"
    lines = [head, f"  {requirement.text}"]
    case = case.replace("\n", f"\n{'':<12}")
    fields = {"case": case, "expected": failure.expected, "actual": failure.actual,
              "reads": failure.reads, "end": failure.end, "hint": failure.hint, "replay": replay}
    lines += [f"  {label:<8}  {value}" for label, value in fields.items() if value]
    return "\n".join(lines)
