"""`pabench mutants`: every mutant asked at every level that should notice it, and the table of what killed it.

A mutant is asked the requirements that it names. Where its bug has to show and no mutant of it names anything, it is
asked everything. Rows are written as they come: a run that was cut short goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pabench.conformance.bugs import Bug, load_bugs
from pabench.conformance.hosting import ask_engine, ask_in_process, engine, preset_for
from pabench.conformance.levels import SUITE_LEVELS
from pabench.conformance.mutants import Mutant, load_mutants
from pabench.conformance.profiles import load_profile
from pabench.conformance.results import SPEC_VERSION, load_results
from pabench.conformance.verdicts import NOT_CONFORMING
from pabench.errors import EXIT_INTERRUPTED, EXIT_NOT_CONFORMING, EXIT_OK, EngineDied, UsageError
from pabench.probe import PRESETS, build_checkpoint
from pabench.resources import data_dir

KILLS_FILE = "kills.jsonl"
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"
_LAST_WORDS_CHARS = 300


@dataclass(frozen=True, slots=True)
class Kill:
    """What became of one mutant at one level."""

    mutant: str
    level: str
    digest: str                   # of what was asked of which fault: what has changed since is asked again
    outcome: str                  # killed, survived, or broken: could not be asked
    by: tuple[str, ...] = ()      # requirements that failed
    missed: tuple[str, ...] = ()  # requirements that the mutant names and that held
    reason: str = ""              # why it is broken
    duration_s: float = 0.0

    @property
    def good(self) -> bool:
        """Whether all that should notice the fault did."""
        return self.outcome == KILLED and not self.missed


@dataclass(frozen=True, slots=True)
class Question:
    """One mutant at one level, and the requirements it is asked; none: all of the level."""

    mutant: Mutant
    level: str
    ids: tuple[str, ...]
    digest: str


Report = Callable[[int, int, Question, Kill], None]


def questions(
    names: Sequence[str] = (), levels: Sequence[str] = (), profile: str = "ci"
) -> list[Question]:
    """What is to be asked, mutant by mutant; by default of all at all levels. Raises UsageError for unknown names."""
    load_profile(profile)
    mutants, bugs = load_mutants(), load_bugs()
    for given, known, what in ((names, mutants, "mutant"), (levels, SUITE_LEVELS, "level")):
        if unknown := [each for each in given if each not in known]:
            raise UsageError(f"unknown {what} {unknown[0]!r}, expected one of {', '.join(known)}")
    return [
        Question(mutant, level, mutant.owes(level), _digest(mutant, level, profile))
        for mutant in mutants.values() if not names or mutant.name in names
        for level in owed(mutant, bugs[mutant.bug], mutants.values()) if not levels or level in levels
    ]


def owed(mutant: Mutant, bug: Bug, mutants: Iterable[Mutant]) -> list[str]:
    """The levels at which a mutant has to be killed.

    Those of the requirements that it names; and those at which its bug has to show, unless another of `mutants` with
    this bug names requirements there.
    """
    named = {level for each in mutants if each.bug == bug.id for level in SUITE_LEVELS if each.owes(level)}
    return [level for level in SUITE_LEVELS
            if mutant.owes(level) or (level in levels_of(bug) and level not in named)]


def levels_of(bug: Bug) -> list[str]:
    """The levels at which a bug has to show: the cheapest that its entry names, and http where a client can see it.

    Where one of them cannot be had, the entry says so and why.
    """
    return [level for level in bug.should_show if level != bug.not_shown]


def _digest(mutant: Mutant, level: str, profile: str) -> str:
    source = (data_dir("suites") / "mutants" / f"{mutant.name}.py").read_bytes()
    asked = json.dumps([level, profile, SPEC_VERSION, mutant.owes(level)]).encode()
    return hashlib.sha256(source + asked).hexdigest()[:16]


def run_mutants(asked: Sequence[Question], out: Path, profile: str, report: Report) -> list[Kill]:
    """Ask all questions that out/kills.jsonl has no answer to, and write each answer there. All answers, in order."""
    out.mkdir(parents=True, exist_ok=True)
    known = load_kills(out / KILLS_FILE)
    kills = []
    with (out / KILLS_FILE).open("a", encoding="utf-8") as file:
        for place, question in enumerate(asked, start=1):
            kill = known.get((question.mutant.name, question.level))
            if kill is None or kill.digest != question.digest or kill.outcome == BROKEN:
                kill = _answer(question, out, _probe(question, out), profile)
                file.write(json.dumps(asdict(kill)) + "\n")
                file.flush()
            kills.append(kill)
            report(place, len(asked), question, kill)
    return kills


def _probe(question: Question, out: Path) -> Path:
    """The folder of the probe that `question` is asked on, built when first needed."""
    name = preset_for(question.ids)
    folder = out / f"probe-{name}"
    if not (folder / "probe.json").exists():
        build_checkpoint(PRESETS[name], folder)
    return folder


def load_kills(path: Path) -> dict[tuple[str, str], Kill]:
    """The last answer of each mutant and level in a kills.jsonl; none where there is no file. A line that was cut
    short is as if it were not there.
    """
    kills = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            kill = Kill(**values | {key: tuple(values[key]) for key in ("by", "missed")})
        except (ValueError, TypeError, KeyError):
            continue
        kills[kill.mutant, kill.level] = kill
    return kills


def _answer(question: Question, out: Path, probe: Path, profile: str) -> Kill:
    mutant, level = question.mutant, question.level
    folder = out / mutant.name / level
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    kill = Kill(mutant.name, level, question.digest, BROKEN)
    try:
        code = _ask(question, folder, probe, profile)
        if code == EXIT_INTERRUPTED:  # the suite has written what it had and says so, instead of raising it
            raise KeyboardInterrupt
        if code not in (EXIT_OK, EXIT_NOT_CONFORMING):
            tail = " ".join((folder / "log").read_text(errors="replace").split())[-_LAST_WORDS_CHARS:]
            kill = replace(kill, reason=f"the suite ended with {code}: {tail}")
        else:
            # Of what it was not named for, a MUST alone is a kill: a sound engine may fail the others.
            failed = {v.requirement for v in load_results(folder / "results").by_requirement()
                      if v.outcome in NOT_CONFORMING and (v.level == "MUST" or v.requirement in question.ids)}
            kill = replace(kill, outcome=KILLED if failed else SURVIVED, by=tuple(sorted(failed)),
                           missed=tuple(each for each in question.ids if each not in failed))
    except EngineDied as error:
        kill = replace(kill, reason=str(error)[-_LAST_WORDS_CHARS:])
    return replace(kill, duration_s=round(time.monotonic() - start, 1))


def _ask(question: Question, folder: Path, probe: Path, profile: str) -> int:
    name, out, log = question.mutant.name, folder / "results", folder / "log"
    if question.level != "http":
        return ask_in_process(name, question.level, question.ids, out=out, profile=profile, log=log)
    with engine(name, probe, folder / "engine.log", *question.mutant.engine_args) as url:
        return ask_engine(url, question.ids, out=out, profile=profile, log=log)


def exit_code(kills: Sequence[Kill]) -> int:
    """0 when every mutant was killed wherever it has to be, else 1."""
    return EXIT_OK if all(kill.good for kill in kills) else EXIT_NOT_CONFORMING


# The table ------------------------------------------------------------------------------------------------------------


def kill_table(kills: Sequence[Kill]) -> list[tuple[str, ...]]:
    """Rows of (mutant, and what became of it at each level of SUITE_LEVELS); "–": nothing there has to notice it."""
    found = {(kill.mutant, kill.level): kill for kill in kills}
    names = dict.fromkeys(kill.mutant for kill in kills)
    return [(name, *(cell(found.get((name, level))) for level in SUITE_LEVELS)) for name in names]


def cell(kill: Kill | None) -> str:
    """One answer in words."""
    if kill is None:
        return "–"
    parts = [kill.outcome]
    if kill.by:
        parts.append(f"by {', '.join(_bare(each) for each in kill.by)}")
    if kill.missed:
        parts.append(f"MISSED by {', '.join(_bare(each) for each in kill.missed)}")
    return " ".join(parts) if not kill.reason else f"{kill.outcome}: {kill.reason}"


def _bare(requirement: str) -> str:
    return requirement.partition("/")[2]


def kills_page(kills: Sequence[Kill], command: str) -> str:
    """The table as Markdown, for docs/mutants.md."""
    mutants, bugs = load_mutants(), load_bugs()
    return "\n".join(_page(kills, command, mutants, bugs)) + "\n"


def _page(
    kills: Sequence[Kill], command: str, mutants: Mapping[str, Mutant], bugs: Mapping[str, Bug]
) -> Iterator[str]:
    took_s = sum(kill.duration_s for kill in kills)
    good = sum(kill.good for kill in kills)
    yield "# Mutants, and what kills them\n"
    yield ("Each mutant is a reference engine with one fault in it, modelled on a real bug. A suite that passes one "
           "proves nothing. [requirements.md](requirements.md) lists the bugs.\n")
    yield f"```\n{command}\n```\n"
    yield (f"{good} of {len(kills)} pairs of a mutant and a level ({len(kill_table(kills))} mutants) as they must be; "
           f"{took_s:.0f} s. Cheapest: the level at which the bug shows first (engine: a whole engine, asked over "
           "HTTP). Client: whether a client sees the bug with an ordinary model. A dash: nothing at that level has to "
           "notice the mutant.\n")
    yield f"| mutant | fault | cheapest | client | {' | '.join(SUITE_LEVELS)} |"
    yield f"| --- | --- | --- | --- |{' --- |' * len(SUITE_LEVELS)}"
    for name, *cells in kill_table(kills):
        mutant = mutants[name]
        bug = bugs[mutant.bug]
        told = (mutant.text, bug.level, bug.http, *cells)
        shown = [text.replace("|", "&#124;").replace("<", "&lt;") for text in told]
        yield f"| [{name}](../suites/mutants/{name}.py) | {' | '.join(shown)} |"
