"""Requirements, tests, mutants and the catalogue of real bugs fit together, and the page says what they say."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from pabench.conformance import load_registry
from pabench.conformance.bugs import load_bugs
from pabench.conformance.hosting import preset_for
from pabench.conformance.kills import questions
from pabench.conformance.levels import SUITE_LEVELS
from pabench.conformance.mutants import load_mutants
from pabench.conformance.page import PAGE, main, requirements_page
from pabench.errors import UsageError
from pabench.resources import data_dir
from tests.conformance.mutant_hosts import ROOT

REGISTRY, BUGS, MUTANTS = load_registry(), load_bugs(), load_mutants()
NOT_SHOWN = {
    ("ascend-mtp-extra-block", "http"), ("tgi-mqa-heads-div-tp", "alloc"),
    ("vllm-hybrid-reused-blocks-not-zeroed", "http"),
}
ONE_BUG = """[[bug]]
id = "acme-lost-block"
engine = "acme"
reference = "#1"
fault = "A block is lost."
level = "alloc"
http = "no"
"""


def marked() -> Counter[str]:
    """Requirements that the suite's tests are marked with, by their source."""
    found: Counter[str] = Counter()
    for level in SUITE_LEVELS:
        for path in (data_dir("suites") / level).rglob("test_*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.requirement":
                    name = ast.literal_eval(node.args[0])
                    assert name.startswith(f"{level}/"), f"{path} decides {name}"
                    found[name] += 1
    return found


def test_every_requirement_has_a_test_and_every_test_a_requirement() -> None:
    assert set(marked()) == set(REGISTRY)


def test_every_must_is_failed_by_a_mutant() -> None:
    covered = {each for mutant in MUTANTS.values() for each in mutant.must_fail}
    assert {each for each in REGISTRY if REGISTRY[each].level == "MUST"} - covered == set()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_names_what_there_is(name: str) -> None:
    mutant = MUTANTS[name]
    assert mutant.text
    assert mutant.must_fail
    assert mutant.bug in BUGS
    assert mutant.bug == name.partition("__")[0].replace("_", "-")
    assert {each for each in mutant.must_fail if each not in REGISTRY} == set()
    assert {each for each in mutant.must_fail if mutant.bug not in REGISTRY[each].bugs} == set()


@pytest.mark.parametrize("name", MUTANTS)
def test_all_that_a_mutant_is_asked_over_http_is_asked_of_one_probe(name: str) -> None:
    """What sees pictures is a `tiny` in all else."""
    alone = {preset_for([each]) for each in MUTANTS[name].owes("http")}
    assert alone in (set(), {"tiny"}, {"window"}, {"mixed"}, {"vision"}, {"tiny", "vision"})
    assert preset_for(MUTANTS[name].owes("http")) == ((alone - {"tiny"}) or {"tiny"}).pop()


def test_requirements_name_bugs_of_the_catalogue() -> None:
    assert {bug for each in REGISTRY for bug in REGISTRY[each].bugs} - set(BUGS) == set()


def test_a_bug_has_mutants_or_a_reason_for_none() -> None:
    modelled = {mutant.bug for mutant in MUTANTS.values()}
    reasoned = {bug for bug in BUGS if BUGS[bug].no_mutant}
    assert reasoned & modelled == set(), "take no_mutant out of suites/bugs.toml where there is a mutant now"
    assert set(BUGS) - modelled - reasoned == set(), "a mutant, or no_mutant in suites/bugs.toml"


def test_what_cannot_show_where_it_should_is_known() -> None:
    """An entry that is excused of a level is one that somebody has looked at: add it here too, or find it a mutant."""
    assert {(bug.id, bug.not_shown) for bug in BUGS.values() if bug.not_shown} == NOT_SHOWN
    named = {(mutant.bug, level) for mutant in MUTANTS.values() for level in SUITE_LEVELS if mutant.owes(level)}
    assert named & NOT_SHOWN == set(), "a mutant shows there: take not_shown out"


def test_all_else_is_demanded() -> None:
    """At its cheapest level, and over HTTP where a client sees it, whatever requirements say."""
    demanded = {(one.mutant.bug, one.level) for one in questions()}
    modelled = {mutant.bug for mutant in MUTANTS.values()}
    should = {(bug.id, level) for bug in BUGS.values() for level in bug.should_show if bug.id in modelled}
    assert should - demanded == NOT_SHOWN


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == requirements_page(), "run `python -m pabench.conformance.page`"


def test_the_page_names_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert all(f"### {each}\n" in page and REGISTRY[each].why in page for each in REGISTRY)
    assert all(f"| `{bug}` |" in page for bug in BUGS)
    assert f": {len(NOT_SHOWN)} cannot, in this suite, at one of the two." in page
    assert all(f"| `{bug}` | {level} | {BUGS[bug].not_shown_why} |" in page for bug, level in NOT_SHOWN)
    assert all(f"[{mutant}](../suites/mutants/{mutant}.py)" in page for mutant in MUTANTS)


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ('"alloc"', '"moon"', "unknown level 'moon', expected one of kernel, alloc, engine, http"),
    ('"no"', '"perhaps"', "unknown http 'perhaps'"),
    ("is lost.", "is lost", "fault, no_mutant and not_shown_why must be sentences"),
    ('http = "no"', 'http = "no"\nnot_shown = "alloc"', "not_shown and not_shown_why go together"),
    ('http = "no"', 'http = "no"\nnot_shown = "http"\nnot_shown_why = "So."', "where it should show is alloc"),
    ("acme-lost-block", "Acme", "the id is not words"),
    ('engine = "acme"', "", "lacks engine"),
    ('"#1"', "1", "reference must be strings"),
    ('http = "no"', 'http = "no"\nwhy = "x"', "has unknown keys why"),
    ("[[bug]]", "[[bugs]]", "unknown keys bugs"),
    (ONE_BUG, ONE_BUG * 2, "two bugs have the id 'acme-lost-block'"),
    (ONE_BUG, "", "holds no [[bug]]"),
    (ONE_BUG, "[", "is not TOML"),
])
def test_what_is_wrong_with_a_catalogue_is_said(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = tmp_path / "bugs.toml"
    path.write_text(ONE_BUG.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_bugs(path)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(("text", "complaint"), [
    ('"""A fault."""\nBUG = "x-y"\n', "lacks MUST_FAIL, ENGINE_ARGS"),
    ('BUG = "x-y"\nMUST_FAIL = (call(),)\n', "MUST_FAIL must be written out"),
])
def test_what_is_no_mutant_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "x_y.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_mutants(tmp_path)
    assert complaint in str(caught.value)
