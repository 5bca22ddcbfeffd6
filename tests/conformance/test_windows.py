"""The probe with a sliding window over HTTP: what is asked of it, and that each wrong window is found.

Most of it is asked with the mutants.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pabench.conformance import Outcome, Results, Verdict, load_results
from pabench.conformance.runner import run_suite
from pabench.conformance.verdicts import exit_code
from tests.conformance import mutant_hosts

WINDOWED = "http/sliding-window-exact"
FAR_EDGE = {"kB-1", "kB", "kB+1", "crowd"}
DECOYS = {"decoys-cold", "decoys-behind-hit", "decoys-in-chunks", "one-too-far"}


def ask(url: str, out: Path, *ids: str) -> tuple[int, Results]:
    """Exit code and results of the smoke profile; other tests keep the cores busy."""
    code = run_suite(url, out=out, profile="smoke", ids=ids, quiet=True, patience=4.0)
    return code, load_results(out)


@pytest.mark.mutants
@pytest.mark.parametrize("options", [
    ("--num-blocks", "40", "--check-integrity"),
    ("--no-enable-prefix-caching", "--attention-backend", "torch", "--block-size", "48", "--num-blocks", "64",
     "--max-num-batched-tokens", "64"),
], ids=["small pool", "no cache, small chunks"])
def test_the_reference_engine_conforms(options: tuple[str, ...], window_probe: Path, tmp_path: Path) -> None:
    """And is asked nothing else: the other requirements speak of whole prompts, and of salts."""
    with mutant_hosts.engine(None, window_probe, tmp_path / "log", *options) as url:
        code, results = ask(url, tmp_path / "out")
    assert [row.text for row in results.rows if row.text] == []
    assert code == 0
    found = {row.case: row.outcome for row in results.rows if row.requirement == WINDOWED}
    lacking = {"decoys-behind-hit"} if "--no-enable-prefix-caching" in options else set()
    assert found == {case: Outcome.UNSUPPORTED if case in lacking else Outcome.PASS for case in FAR_EDGE | DECOYS}
    others = {(row.outcome, row.reason) for row in results.rows if row.requirement != WINDOWED}
    assert others == {
        (Outcome.UNSUPPORTED, "probe 'window' sees no further than 64 tokens and knows no salts: serve the preset "
                              "'gqa' to have this asked"),
        (Outcome.UNSUPPORTED, "the model that is served has no windows in some layers: serve the preset 'mixed' to "
                              "have this asked")}


@pytest.mark.parametrize(("window", "failing"), [
    (63, FAR_EDGE), pytest.param(65, DECOYS, marks=pytest.mark.mutants),
    pytest.param(None, DECOYS, marks=pytest.mark.mutants),
])
def test_a_wrong_window_is_found(window: int | None, failing: set[str], window_probe: Path, tmp_path: Path) -> None:
    """One too short, one too long, none: whoever decodes and prefills with it alike."""
    folder = shutil.copytree(window_probe, tmp_path / "probe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": window}))
    with mutant_hosts.engine(None, folder, tmp_path / "log") as url:
        code, results = ask(url, tmp_path / "out", WINDOWED)
    assert code == 1
    assert {row.case for row in results.rows if row.outcome is Outcome.FAIL} == failing
    hint = "the first position of the window" if window == 63 else "what had left the window"
    assert all(hint in row.text for row in results.rows if row.outcome is Outcome.FAIL)


MIXED = "http/mixed-windows-exact"
CASES = {"cold", "behind-hit", "in-chunks", "crowd"}


@pytest.mark.mutants
@pytest.mark.parametrize("options", [
    ("--num-blocks", "64", "--max-model-len", "512", "--check-integrity"),
    ("--no-enable-prefix-caching", "--attention-backend", "torch", "--max-num-batched-tokens", "64"),
], ids=["small pool", "no cache, small chunks"])
def test_windows_in_some_layers_are_asked_of_a_probe_of_their_own(
    options: tuple[str, ...], mixed_probe: Path, tmp_path: Path
) -> None:
    with mutant_hosts.engine(None, mixed_probe, tmp_path / "log", *options) as url:
        code, results = ask(url, tmp_path / "out")
    assert [row.text for row in results.rows if row.text] == []
    assert code == 0
    found = {row.case: row.outcome for row in results.rows if row.requirement == MIXED}
    lacking = {"behind-hit"} if "--no-enable-prefix-caching" in options else set()
    assert found == {case: Outcome.UNSUPPORTED if case in lacking else Outcome.PASS for case in CASES}
    assert {row.outcome for row in results.rows if row.requirement != MIXED} == {Outcome.UNSUPPORTED}


@pytest.mark.parametrize(("kind", "hint"), [
    ("full_attention", "layers with a window of 64 tokens alone read wrongly"),
    pytest.param("sliding_attention", "layers that see everything alone read wrongly", marks=pytest.mark.mutants),
])
def test_layers_that_see_alike_are_found(kind: str, hint: str, mixed_probe: Path, tmp_path: Path) -> None:
    """Whichever kind an engine takes all of them for: of the other one it is said."""
    folder = shutil.copytree(mixed_probe, tmp_path / "probe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_types": [kind] * 4}))
    with mutant_hosts.engine(None, folder, tmp_path / "log") as url:
        code, results = ask(url, tmp_path / "out", MIXED)
    assert code == 1
    assert {row.case for row in results.rows if row.outcome is Outcome.FAIL} == CASES
    assert all(hint in row.text for row in results.rows if row.outcome is Outcome.FAIL)


def test_another_probe_is_asked_by_name(tiny_probe: Path, tmp_path: Path) -> None:
    with mutant_hosts.engine(None, tiny_probe, tmp_path / "log") as url:
        code, results = ask(url, tmp_path / "out", WINDOWED, "http/usage-exact")
    assert code == 0
    reasons = {row.reason for row in results.rows if row.requirement == WINDOWED}
    assert reasons == {"the model that is served has no sliding window in all layers: serve the preset 'window' to "
                       "have this asked"}


@pytest.mark.mutants
def test_it_is_known_where_its_folder_is_not_seen(window_probe: Path, tmp_path: Path) -> None:
    """By a ring without a salt, also of an engine that sees through the window: it must not be taken for another."""
    folder = shutil.copytree(window_probe, tmp_path / "probe")
    (folder / "probe.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    with mutant_hosts.engine(None, folder, tmp_path / "log") as url:
        code, results = ask(url, tmp_path / "out", WINDOWED, "http/ring-exact")
    assert code == 1
    assert results.header.engine["probe"] == "window"
    assert {row.outcome for row in results.rows if row.requirement == "http/ring-exact"} == {Outcome.UNSUPPORTED}


def test_the_mixed_one_is_known_too(mixed_probe: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mixed_probe, tmp_path / "probe")
    (folder / "probe.json").unlink()
    with mutant_hosts.engine(None, folder, tmp_path / "log") as url:
        code, results = ask(url, tmp_path / "out", WINDOWED, MIXED)
    assert code == 0
    assert results.header.engine["probe"] == "mixed"
    assert {row.outcome for row in results.rows if row.requirement == MIXED} == {Outcome.PASS}


@pytest.mark.parametrize(("ring", "windowed", "code"), [
    (Outcome.UNSUPPORTED, Outcome.PASS, 0), (Outcome.UNSUPPORTED, Outcome.FAIL, 1),
    (Outcome.UNSUPPORTED, Outcome.UNSUPPORTED, 2), (Outcome.PASS, Outcome.UNSUPPORTED, 0),
])
def test_an_answer_that_was_judged_is_enough(ring: Outcome, windowed: Outcome, code: int) -> None:
    """A third requirement holds in all of them: it may be one that judges no text."""
    rows = [("http/ring-exact", ring), (WINDOWED, windowed), ("http/bad-input-then-healthy", Outcome.PASS)]
    assert exit_code([Verdict(name, "", "MUST", outcome) for name, outcome in rows]) == code
