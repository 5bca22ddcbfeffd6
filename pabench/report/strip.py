"""The verdict strip: is each engine's run valid, are its answers verified, does it conform?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pabench.conformance.verdicts import ASKED, NOT_CONFORMING, Outcome
from pabench.errors import EXIT_NOT_CONFORMING, EXIT_OK
from pabench.report.groups import Engine
from pabench.report.text import count

YES, NO, OPEN = "yes", "no", "open"


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer. `state`: yes, no or open; `text` says how much, `reasons` why not (may be hostile)."""

    question: str
    state: str
    word: str
    text: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """One engine: what it says it is, and the answers."""

    engine: Engine
    facts: str
    answers: tuple[Answer, ...]


def cards(engines: Iterable[Engine]) -> list[Card]:
    """One card an engine."""
    return [
        Card(engine, _facts(engine), (_valid(engine), _verified(engine), conforming(engine))) for engine in engines
    ]


def _facts(engine: Engine) -> str:
    """Dialect, version and KV geometry in one line, from the last run or the conformance header."""
    if engine.runs:
        record = engine.runs[-1].manifest.engine
        dialect, version, kv = record.dialect, record.version, record.kv
        parts = [" ".join(filter(None, (dialect, version)))]
        if kv is not None:
            parts += [f"{kv.kv_mode} KV"] if kv.kv_mode else []
            if kv.num_blocks is not None and kv.block_size is not None:
                parts.append(f"{count(kv.num_blocks)} blocks of {count(kv.block_size)}")
        return " · ".join(parts)
    told = engine.suites[-1].results.header.engine
    return " ".join(str(told[key]) for key in ("dialect", "version") if told.get(key))


def _valid(engine: Engine) -> Answer:
    question = "Valid?"
    runs = engine.runs
    if not runs:
        return Answer(question, OPEN, "not measured", "no run of this engine")
    good = sum(run.believable for run in runs)
    if good == len(runs):
        return Answer(question, YES, "valid", f"{count(good)} of {count(good)} runs")
    reasons = tuple(f"{run.summary.load}: {reason}" for run in runs for reason in run.summary.validity.reasons)
    return Answer(question, NO, "not valid", f"{count(len(runs) - good)} of {count(len(runs))} runs", reasons)


def _verified(engine: Engine) -> Answer:
    question = "Verified?"
    checked = [run.summary for run in engine.runs if run.summary.verified_tokens is not None]
    if not checked:
        return Answer(question, OPEN, "not checked", "no run with an oracle")
    right = sum(summary.verified_tokens or 0 for summary in checked)
    wrong = sum(summary.wrong_tokens or 0 for summary in checked)
    lost = sum(
        number for summary in checked for outcome, number in summary.outcomes.items() if outcome in ("error", "timeout")
    )
    text = f"{count(right)} of {count(right + wrong)} tokens"
    reasons = [f"{count(lost)} requests ended in an error or ran out of time"] if lost else []
    if wrong:
        return Answer(question, NO, "wrong answers", text, (f"{count(wrong)} wrong tokens", *reasons))
    if right == 0:
        return Answer(question, OPEN, "nothing to check", text, tuple(reasons))
    if len(checked) < len(engine.runs):
        reasons.append(f"{count(len(engine.runs) - len(checked))} runs have no oracle")
    return Answer(question, YES, "verified", text, tuple(reasons))


def conforming(engine: Engine) -> Answer:
    """Whether all that the suite asked of it held."""
    question = "Conforming?"
    if not engine.suites:
        return Answer(question, OPEN, "not checked", "no conformance result")
    rows = [row for suite in engine.suites for row in suite.results.rows]
    codes = {suite.results.footer.exit_code for suite in engine.suites}
    passed = sum(row.outcome is Outcome.PASS for row in rows)
    asked = sum(row.outcome in ASKED for row in rows)
    profiles = ", ".join(dict.fromkeys(suite.results.header.profile for suite in engine.suites))
    text = f"{count(passed)} of {count(asked)} cases (profile {profiles})"
    left_out = len(rows) - asked
    reasons = [f"{row.name}: {row.outcome}" for row in rows if row.outcome in NOT_CONFORMING | {Outcome.XPASS}]
    if left_out:
        reasons.append(f"{count(left_out)} cases not asked: they say nothing about the engine")
    if any(suite.results.footer.status != "complete" for suite in engine.suites):
        reasons.insert(0, "the suite was interrupted")
    if EXIT_NOT_CONFORMING in codes:
        return Answer(question, NO, "not conforming", text, tuple(reasons))
    if codes == {EXIT_OK}:
        return Answer(question, YES, "conforming", text, tuple(reasons))
    return Answer(question, OPEN, "not decided", text, tuple(reasons))
