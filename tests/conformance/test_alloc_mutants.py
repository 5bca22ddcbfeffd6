"""The allocator level of the suite fails block managers that are broken, and passes ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.hosting import ask_in_process
from pabench.conformance.kills import questions, run_mutants
from pabench.conformance.mutants import load_mutants
from pabench.conformance.runner import run_suite

MUTANTS = [name for name, mutant in load_mutants().items() if mutant.owes("alloc")]


@pytest.mark.mutants
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_failed_by_what_it_names(name: str, tmp_path: Path) -> None:
    (kill,) = run_mutants(questions([name], ["alloc"], "ci"), tmp_path, "ci", lambda *_: None)
    assert kill.good, kill


@pytest.mark.mutants
def test_where_nothing_is_found_no_hit_passes(tmp_path: Path) -> None:
    ids = [f"alloc/{name}" for name in ("hit-oracle", "hash-covers-parent-and-extra-keys", "hit-leaves-a-token",
                                        "single-writer")]
    ask_in_process("vllm_evict_duplicate_hides_survivor__never_found", "alloc", ids, out=tmp_path / "out",
                   profile="smoke", log=tmp_path / "log")
    found = {row.name: row.outcome for row in load_results(tmp_path / "out").rows}
    assert found.pop("alloc/single-writer[forks]") is Outcome.PASS
    assert {name.partition("[")[0] for name in found} == set(ids)
    assert set(found.values()) == {Outcome.UNSUPPORTED}


@pytest.mark.mutants
@pytest.mark.parametrize(("impl", "passed"), [("reference-paged", 22), ("reference-contiguous", 13)])
def test_ours_conform(impl: str, passed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_suite(impl=impl, out=tmp_path / "out", profile="smoke", live=False) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[1].startswith("requirement ")  # nothing before the table
    assert shown[-2].startswith("conforming: ")
    assert shown[-1] == f"results: {tmp_path / 'out'}"
    rows = load_results(tmp_path / "out").by_requirement()
    assert sum(row.outcome is Outcome.PASS for row in rows) == passed
    assert {row.outcome for row in rows} <= {Outcome.PASS, Outcome.UNSUPPORTED}
    notes = {row.reason.partition(", held ")[2] for row in load_results(tmp_path / "out").rows
             if row.requirement == "alloc/prediction-equals-consumption" and row.outcome is Outcome.PASS}
    assert notes == {"against its own predictions" + (" and the lengths" if impl == "reference-paged" else "")}
