"""`pabench mutants`: who has to be killed where, what is kept when it is cut short, and what the exit code says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pabench.conformance import Outcome, Verdict, load_registry
from pabench.conformance.bugs import Bug
from pabench.conformance.kills import (
    KILLS_FILE,
    Kill,
    Question,
    cell,
    exit_code,
    kill_table,
    kills_page,
    owed,
    questions,
    run_mutants,
)
from pabench.conformance.mutants import Mutant
from pabench.errors import EngineDied, UsageError
from tests.report.synthetic import write_suite

DOUBLE_FREE = "sglang_overlap_double_free"


def nothing(*_: object) -> None:
    """No progress shown."""


def question(name: str = DOUBLE_FREE, *ids: str, digest: str = "d") -> Question:
    ids = ids or ("http/ring-exact",)
    return Question(Mutant(name, "acme-lost-block", ids, (), "A fault."), "http", ids, digest)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome]:
    """What each requirement comes to, in place of an engine; `asked` counts."""
    made: dict[str, Outcome] = {}

    def ask(asked: Question, folder: Path, probe: Path, profile: str) -> int:
        rows = [Verdict(each, "", load_registry()[each].level, made[each]) for each in asked.ids or made]
        (folder / "log").touch()
        write_suite(folder / "results", rows)
        return int(any(row.outcome is Outcome.FAIL for row in rows))

    monkeypatch.setattr("pabench.conformance.kills._ask", ask)
    monkeypatch.setattr("pabench.conformance.kills.build_checkpoint", nothing)
    return made


def test_a_mutant_in_the_flesh(tmp_path: Path) -> None:
    asked = questions([DOUBLE_FREE], ["alloc"], "smoke")
    ids = ("alloc/conservation", "alloc/no-use-after-free", "alloc/pinned-is-safe")
    assert [(one.mutant.name, one.level, tuple(sorted(one.ids))) for one in asked] == [(DOUBLE_FREE, "alloc", ids)]
    (kill,) = run_mutants(asked, tmp_path, "smoke", nothing)
    assert (kill.outcome, tuple(sorted(kill.by)), kill.missed) == ("killed", ids, ())
    assert (tmp_path / DOUBLE_FREE / "alloc" / "results" / "verdicts.jsonl").is_file()
    assert exit_code([kill]) == 0


@pytest.mark.parametrize(("level", "http", "names", "expected"), [
    ("alloc", "no", ("http/a",), ["alloc", "http"]),    # the cheapest, and what it names
    ("alloc", "no", ("alloc/a",), ["alloc"]),
    ("alloc", "yes", ("alloc/a",), ["alloc", "http"]),  # a client sees it
    ("kernel", "no", ("http/a",), ["kernel", "http"]),  # whether a requirement there speaks of this bug or not
    ("engine", "no", ("alloc/a",), ["alloc", "http"]),  # an engine is asked over HTTP
    ("engine", "partly", ("http/a",), ["http"]),
])
def test_where_a_mutant_has_to_be_killed(level: str, http: str, names: tuple[str, ...], expected: list[str]) -> None:
    bug = Bug("acme-lost-block", "acme", "#1", "A block is lost.", level, http)
    all_levels = ("kernel/a", "alloc/a", "http/a")
    mutant, other = (Mutant("x", bug.id, ids, (), "") for ids in (names, all_levels))
    assert owed(mutant, bug, [mutant]) == expected
    # With another mutant that names all levels, it answers for its own alone.
    assert owed(mutant, bug, [mutant, other]) == [names[0].partition("/")[0]]
    for excused in bug.should_show:  # but where it is excused of a level, and then for what it names
        bare = replace(bug, not_shown=excused, not_shown_why="So.")
        assert owed(mutant, bare, [mutant]) == [one for one in expected if one != excused or mutant.owes(one)]


def test_what_is_known_is_not_asked_again(answers: dict[str, Outcome], tmp_path: Path) -> None:
    answers["http/ring-exact"] = Outcome.FAIL
    first = run_mutants([question()], tmp_path, "smoke", nothing)
    answers["http/ring-exact"] = Outcome.PASS
    assert run_mutants([question()], tmp_path, "smoke", nothing) == first
    (changed,) = run_mutants([question(digest="other")], tmp_path, "smoke", nothing)  # the mutant was edited
    assert changed.outcome == "survived"


def test_what_was_cut_short_goes_on_where_it_was(answers: dict[str, Outcome], tmp_path: Path) -> None:
    answers["http/ring-exact"] = Outcome.FAIL
    asked = [question("one"), question("two"), question("three")]

    def interrupt(place: int, *_: object) -> None:
        if place == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_mutants(asked, tmp_path, "smoke", interrupt)
    path = tmp_path / KILLS_FILE
    path.write_text(path.read_text()[:-20])  # killed while it wrote
    seen: list[str] = []
    kills = run_mutants(asked, tmp_path, "smoke", lambda _place, _count, one, _kill: seen.append(one.mutant.name))
    assert seen == [kill.mutant for kill in kills] == ["one", "two", "three"]
    assert all(kill.outcome == "killed" for kill in kills)
    assert run_mutants(asked, tmp_path, "smoke", nothing) == kills


def test_a_requirement_that_does_not_notice_is_named(answers: dict[str, Outcome], tmp_path: Path) -> None:
    answers |= {"http/ring-exact": Outcome.FAIL, "http/usage-exact": Outcome.PASS}
    (kill,) = run_mutants([question("x", *answers)], tmp_path, "smoke", nothing)
    assert (kill.outcome, kill.by, kill.missed, kill.good) == (
        "killed", ("http/ring-exact",), ("http/usage-exact",), False)
    assert cell(kill) == "killed by ring-exact MISSED by usage-exact"
    assert exit_code([kill]) == 1


def test_asked_everything_a_must_alone_is_a_kill(answers: dict[str, Outcome], tmp_path: Path) -> None:
    everything = replace(question(), ids=())
    answers |= {"http/ring-exact": Outcome.PASS, "http/batch-invariant": Outcome.FAIL}
    assert run_mutants([everything], tmp_path, "smoke", nothing)[0].outcome == "survived"
    answers["http/ring-exact"] = Outcome.CRASH
    assert run_mutants([replace(everything, digest="e")], tmp_path, "smoke", nothing)[0].by == ("http/ring-exact",)


def test_what_cannot_be_asked_is_broken_and_no_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    answers: dict[str, Outcome]) -> None:
    def does_not_start(*_: object) -> int:
        raise EngineDied("the engine did not start: no such file")

    monkeypatch.setattr("pabench.conformance.kills._ask", does_not_start)
    (kill,) = run_mutants([question()], tmp_path, "smoke", nothing)
    assert (kill.outcome, kill.reason, kill.good) == ("broken", "the engine did not start: no such file", False)
    assert exit_code([kill]) == 1
    monkeypatch.setattr("pabench.conformance.kills._ask", lambda *_: 130)
    with pytest.raises(KeyboardInterrupt):  # asked again, and interrupted
        run_mutants([question()], tmp_path, "smoke", nothing)


def test_the_table_and_the_page() -> None:
    killed = Kill(DOUBLE_FREE, "http", "d", "killed", ("http/concurrent-isolation",), duration_s=2.0)
    survived = Kill(DOUBLE_FREE, "alloc", "d", "survived", duration_s=1.0)
    assert kill_table([survived, killed]) == [(DOUBLE_FREE, "–", "survived", "killed by concurrent-isolation")]
    kills = [survived, killed, replace(killed, mutant="mistralrs_starvation")]
    page = kills_page(kills, "pabench mutants --profile ci")
    assert "```\npabench mutants --profile ci\n```" in page
    assert "2 of 3 pairs of a mutant and a level (2 mutants) as they must be; 5 s." in page
    assert f"| [{DOUBLE_FREE}](../suites/mutants/{DOUBLE_FREE}.py) |" in page


@pytest.mark.parametrize(("names", "levels", "profile", "complaint"), [
    (["klingon"], [], "ci", "unknown mutant 'klingon', expected one of ascend_mtp_extra"),
    ([], ["moon"], "ci", "unknown level 'moon', expected one of kernel, alloc, http"),
    ([], [], "huge", "unknown profile 'huge'"),
])
def test_bad_input_is_said_first(names: list[str], levels: list[str], profile: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        questions(names, levels, profile)
    assert complaint in str(caught.value)
