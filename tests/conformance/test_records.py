"""Requirements, verdicts, results, expectations and case files: what is refused, and what a run comes to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pabench.conformance import Outcome, Verdict, load_registry, load_results
from pabench.conformance.cases import Case, load_case, write_case
from pabench.conformance.exchange import Exchange, exchange_as_json
from pabench.conformance.expectations import load_expectations
from pabench.conformance.failure import CaseFailed, Failure, fail, failure_text
from pabench.conformance.results import FILE_NAME, SPEC_VERSION, Header, ResultsWriter
from pabench.conformance.verdicts import by_requirement, exit_code, replay_code, worst
from pabench.engines.base import GenerationRequest
from pabench.errors import UsageError

GOOD = """
spec_version = 1
[[requirement]]
id = "http/a-b"
level = "MUST"
since = 1
text = "It MUST."
why = "Because."
bugs = ["vllm-some-bug"]
needs = ["n"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text)
    return path


def test_the_requirements_that_ship_are_sound() -> None:
    registry = load_registry()
    assert len(registry) >= 13
    assert all(registry[each].bugs for each in registry)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    requirement = load_registry(write(tmp_path, GOOD))["http/a-b"]
    assert (requirement.needs, requirement.probe, requirement.bugs) == (("n",), True, ("vllm-some-bug",))


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ('"n"', '"telepathy"', "unknown needs telepathy; known: "),
    ('"MUST"', '"MAY"', "unknown level 'MAY', expected one of MUST, SHOULD, INFO"),
    ('"http/a-b"', '"http/A b"', "the id is not"),
    ("since = 1", "since = 2", "since 2, the file is version 1"),
    ("since = 1", "", "lacks since"),
    ("since = 1", "since = true", "since is True, expected int"),
    ("since = 1", "since = 1\ncolour = 3", "unknown keys colour"),
    ('"It MUST."', '"It does."', "the text does not say MUST"),
    ("spec_version = 1", "", "spec_version is None"),
    ("spec_version = 1", "spec_version = [", "is not TOML"),
    ('["n"]', "[1]", "must be lists of strings"),
])
def test_what_is_wrong_with_a_requirement_is_said(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_registry(write(tmp_path, GOOD.replace(old, new)))
    assert complaint in str(caught.value)


def test_an_id_is_used_once(tmp_path: Path) -> None:
    entry = GOOD.partition("[[")[2]
    with pytest.raises(UsageError, match="two requirements have the id 'http/a-b'"):
        load_registry(write(tmp_path, f"{GOOD}\n[[{entry}"))


def test_an_unknown_id_is_an_error() -> None:
    with pytest.raises(UsageError, match="unknown requirement 'http/nonsense'; known: http/ring-exact"):
        load_registry()["http/nonsense"]


def row(outcome: Outcome, level: str = "MUST", requirement: str = "http/a", case: str = "") -> Verdict:
    return Verdict(requirement, case, level, outcome)


@pytest.mark.parametrize(("rows", "code"), [
    ([row(Outcome.PASS)], 0),
    ([row(Outcome.PASS), row(Outcome.UNSUPPORTED), row(Outcome.XFAIL), row(Outcome.DISABLED)], 0),
    ([row(Outcome.PASS), row(Outcome.FAIL, "SHOULD"), row(Outcome.FAIL, "INFO")], 0),
    ([row(Outcome.PASS), row(Outcome.FAIL)], 1),
    ([row(Outcome.CRASH), row(Outcome.NOTRUN)], 1),
    ([row(Outcome.TIMEOUT)], 1),
    ([row(Outcome.XPASS, "INFO")], 1),
    ([row(Outcome.FAIL), row(Outcome.ERROR)], 1),
    ([row(Outcome.PASS), row(Outcome.ERROR)], 2),
    ([row(Outcome.PASS), row(Outcome.NOTRUN)], 2),
    ([row(Outcome.UNSUPPORTED)], 2),
    ([row(Outcome.PASS), row(Outcome.UNSUPPORTED, requirement="http/ring-exact")], 2),  # no answer was judged
    ([row(Outcome.PASS), row(Outcome.XFAIL, requirement="http/ring-exact")], 0),
    ([row(Outcome.FAIL), row(Outcome.UNSUPPORTED, requirement="http/ring-exact")], 1),
    ([row(Outcome.DISABLED)], 2),
    ([], 2),
])
def test_exit_code(rows: list[Verdict], code: int) -> None:
    assert exit_code(rows) == code


def test_a_replayed_case_that_fails_fails_at_any_level() -> None:
    rows = [Verdict("http/batch-invariant", "", "SHOULD", Outcome.FAIL)]
    assert (exit_code(rows), replay_code(rows)) == (0, 1)
    assert replay_code([Verdict("http/batch-invariant", "", "SHOULD", Outcome.PASS)]) == 0


def test_cases_become_one_verdict() -> None:
    rows = [row(Outcome.PASS, case="a"), row(Outcome.UNSUPPORTED, case="b"), row(Outcome.FAIL, case="c")]
    (verdict,) = by_requirement(rows)
    assert (verdict.outcome, verdict.passed, verdict.asked, verdict.total) == (Outcome.FAIL, 1, 2, 3)
    assert worst([Outcome.UNSUPPORTED, Outcome.PASS]) is Outcome.PASS


def write_results(folder: Path) -> Path:
    with ResultsWriter(folder / FILE_NAME) as writer:
        writer.header(Header(SPEC_VERSION, "0.1.0", "ci", 7, "2026-01-01T00:00:00+00:00", "http://x",
                             {"dialect": "vllm"}))
        writer.row(row(Outcome.PASS))
        writer.row(row(Outcome.FAIL, case="ü\n"))
        writer.footer(1, 2.5, "complete")
    return folder / FILE_NAME


def test_results_come_back(tmp_path: Path) -> None:
    results = load_results(write_results(tmp_path).parent)
    assert results.header.seed == 7
    assert results.rows == [row(Outcome.PASS), row(Outcome.FAIL, case="ü\n")]
    assert (results.footer.counts, results.footer.exit_code) == ({"FAIL": 1, "PASS": 1}, 1)


def test_half_a_surrogate_pair_ends_no_run(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / FILE_NAME) as writer:
        writer.header(Header(SPEC_VERSION, "0.1.0", "ci", 7, "2026-01-01T00:00:00+00:00", "http://x"))
        writer.row(Verdict("http/a", "", "MUST", Outcome.FAIL, reason="a\ud800b"))
        writer.footer(1, 2.5, "complete")
    assert load_results(tmp_path).rows[0].reason == "a?b"
    name = write_case(tmp_path, Case("http/a", "", "smoke", 3, {}), impl="x", text="\udfff",
                      evidence={}, circumstances={})
    assert json.loads((tmp_path / name).read_text())["failure"] == "?"


@pytest.mark.parametrize(("change", "complaint"), [
    (lambda lines: lines[:-1], "has no footer: its run was cut short after 2 rows"),
    (lambda lines: [*lines[:1], *lines[2:]], "holds 1 rows, its footer says 2"),
    (lambda lines: lines[1:], "does not begin with a header"),
    (lambda lines: [], "does not begin with a header"),
    (lambda lines: [*lines[:-1], lines[-1][:20]], "is not JSON"),
    (lambda lines: [lines[0].replace(f'"spec_version": {SPEC_VERSION}', '"spec_version": 9'), *lines[1:]],
     "has spec_version 9"),
    (lambda lines: [lines[0], lines[1].replace("PASS", "FINE"), *lines[2:]], "does not fit schema 1"),
    (lambda lines: [lines[0], lines[1].replace('"case": ""', '"kase": ""'), *lines[2:]], "does not fit schema 1"),
    (lambda lines: [lines[0], lines[0], *lines[2:]], "does not fit schema 1"),
    (lambda lines: ["[]", *lines], "is not a JSON object"),
    (lambda lines: [lines[0], lines[1].replace('"outcome": "PASS", ', ""), *lines[2:]], "a case without an outcome"),
    (lambda lines: [lines[0].replace('{"dialect": "vllm"}', "null"), *lines[1:]], "the header's engine is None"),
])
def test_broken_results_are_refused(tmp_path: Path, change: object, complaint: str) -> None:
    path = write_results(tmp_path)
    path.write_text("\n".join(change(path.read_text().split("\n")[:-1])))  # type: ignore[operator]
    with pytest.raises(UsageError) as caught:
        load_results(path)
    assert complaint in str(caught.value)


def test_results_cut_inside_a_character_are_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path)
    told = path.read_bytes()
    path.write_bytes(told[: told.index("ü".encode()) + 1])
    with pytest.raises(UsageError, match=r"is not UTF-8 .*: cut short\? run the suite again"):
        load_results(path)


def test_an_end_of_line_of_the_engine_ends_no_line_of_the_file(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / FILE_NAME) as writer:
        writer.header(Header(SPEC_VERSION, "0.1.0", "ci", 7, "2026-01-01T00:00:00+00:00", "http://x"))
        writer.row(Verdict("http/a", "", "MUST", Outcome.FAIL, reason="a\u2028b\x85c"))
        writer.footer(1, 2.5, "complete")
    assert load_results(tmp_path).rows[0].reason == "a\u2028b\x85c"


def test_missing_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the verdicts"):
        load_results(tmp_path)


EXPECTED = """
[[expected]]
id = "http/a[kB]"
when = { dialect = "vllm", version = "0.32" }
reason = "known"
issue = "https://example.org/1"
[[disabled]]
id = "http/b"
reason = "slow"
"""


def test_expectations_apply_where_they_say(tmp_path: Path) -> None:
    expectations = load_expectations(write(tmp_path, EXPECTED), ["http/a", "http/b"])
    here = {"dialect": "vllm", "version": "0.32.1", "kv_mode": None, "profile": "ci"}
    assert expectations.expected_failure("http/a[kB]", "http/a", here) is not None
    assert expectations.expected_failure("http/a[kB+1]", "http/a", here) is None
    assert expectations.expected_failure("http/a[kB]", "http/a", here | {"version": "0.31"}) is None
    assert expectations.expected_failure("http/a[kB]", "http/a", here | {"version": None}) is None
    assert expectations.disabled_reason("http/b[x]", "http/b") == "slow"
    assert expectations.disabled_reason("http/a[kB]", "http/a") is None


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ("http/b", "http/c", "speaks of 'http/c', which is no requirement; known: http/a, http/b"),
    ("dialect =", "moon =", "unknown condition 'moon'; known: dialect, version, kv_mode, impl, profile"),
    ('reason = "slow"', "", "an entry of [[disabled]] (http/b) lacks reason"),
    ('issue = "https://example.org/1"', "", "lacks issue"),
    ('reason = "slow"', 'reason = "slow"\nwhy = "x"', "has unknown keys why"),
    ("[[disabled]]", "[[disabeld]]", "unknown keys disabeld"),
    ("[[disabled]]", "[disabled]", "must be written as [[disabled]]"),
    ('"vllm"', "3", "expected a table of strings"),
])
def test_what_is_wrong_with_expectations_is_said(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_expectations(write(tmp_path, EXPECTED.replace(old, new)), ["http/a", "http/b"])
    assert complaint in str(caught.value)


def test_a_failure_text_has_its_lines_in_order() -> None:
    requirement = load_registry()["http/ring-exact"]
    failure = Failure("A[5] = t1", "A[5] = t2", "wrong in layer 1", "look here")
    impl, replay = "acme 0.4 at http://x", "pabench replay y"
    text = failure_text(requirement, "kB", Outcome.FAIL, impl, "block 16", failure, replay)
    assert text.splitlines() == [
        "FAIL http/ring-exact[kB]  (MUST, since 1)      impl: acme 0.4 at http://x",
        f"  {requirement.text}",
        "  case      block 16",
        "  expected  A[5] = t1",
        "  actual    A[5] = t2",
        "  reads     wrong in layer 1",
        "  hint      look here",
        "  replay    pabench replay y",
    ]


def test_an_engines_words_forge_no_line_and_steer_no_terminal() -> None:
    hostile = "no\n  hint      all is well\n  replay    rm -rf /\x1b[2J\u202e"
    with pytest.raises(CaseFailed) as caught:
        fail("every request is served", hostile, hint=hostile)
    requirement = load_registry()["http/ring-exact"]
    text = failure_text(requirement, "kB", Outcome.FAIL, "acme", "block 16", caught.value.failure, "pabench replay y")
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["case", "expected", "actual", "hint", "replay"]
    assert not any(char in text for char in ("\x1b", "\u202e"))


def test_a_case_comes_back_and_holds_what_was_sent(tmp_path: Path) -> None:
    case = Case("http/ring-exact", "kB", "smoke", 3, {"geometry": {"block_size": 16}})
    exchange = Exchange(GenerationRequest((1, 2, 3), 4), "A")
    name = write_case(tmp_path, case, impl="x", text="t", evidence={"exchanges": [exchange_as_json(exchange)]},
                      circumstances={})
    assert load_case(tmp_path / name) == case
    assert json.loads((tmp_path / name).read_text())["exchanges"][0]["request"]["prompt"] == [1, 2, 3]
    assert name == write_case(tmp_path, case, impl="../../evil", text="", evidence={}, circumstances={})


@pytest.mark.parametrize(("text", "complaint"), [
    ("nonsense", "is not JSON"),
    ("[]", "is no case file"),
    ('{"kind": "pabench case", "spec_version": 0}', "is of spec version 0"),
    (f'{{"kind": "pabench case", "spec_version": {SPEC_VERSION}}}', "is not a whole case file"),
])
def test_what_is_no_case_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_case(path)
    assert complaint in str(caught.value)
