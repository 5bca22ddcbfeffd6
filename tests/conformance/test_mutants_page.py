"""docs/mutants.md says of every mutant what became of it at every level that has to notice it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pabench.commands.conformance import app
from pabench.conformance import kills
from pabench.conformance.kills import questions
from pabench.conformance.levels import SUITE_LEVELS
from pabench.conformance.mutants import load_mutants
from tests.conformance.mutant_hosts import ROOT

PAGE = (ROOT / "docs" / "mutants.md").read_text()


def rows() -> dict[str, list[str]]:
    """Mutant -> the cells of its row: fault, cheapest, client, then the levels."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| [")]
    return {re.sub(r"\[(.*)\]\(.*\)", r"\1", name): cells for name, *cells in lines}


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the page that is there, not into it: what is cut short leaves that one."""
    for name, made in (("run_mutants", []), ("kills_page", "new"), ("exit_code", 0)):
        monkeypatch.setattr(kills, name, lambda *_, made=made: made)
    page, before = tmp_path / "page.md", tmp_path / "before.md"
    page.write_text("old")
    os.link(page, before)
    done = CliRunner().invoke(app, ["mutants", "--out", str(tmp_path / "out"), "--markdown", str(page)])
    assert done.exit_code == 0, done.output
    assert (page.read_text(), before.read_text()) == ("new", "old")


def test_it_has_each_mutant_at_each_level_once_and_all_are_killed() -> None:
    """When it does not: `pabench mutants NAME --markdown FILE`, and its row into the page."""
    found = {(name, level): cell for name, cells in rows().items()
             for level, cell in zip(SUITE_LEVELS, cells[3:], strict=True) if cell != "–"}
    asked = {(one.mutant.name, one.level): one.ids for one in questions()}
    assert set(found) == set(asked)
    missed = {key: cell for key, cell in found.items() if not cell.startswith("killed by ") or "MISSED" in cell}
    assert missed == {}
    unnamed = {key: cell for key, cell in found.items()  # what a mutant names must be what is told to have killed it
               if not {each.partition("/")[2] for each in asked[key]} <= set(cell[len("killed by "):].split(", "))}
    assert unnamed == {}


def test_what_it_says_of_a_mutant_is_what_the_mutant_says() -> None:
    stale = [name for name, cells in rows().items()
             if cells[0] != load_mutants()[name].text.replace("|", "&#124;").replace("<", "&lt;")]
    assert stale == []


def test_its_sum_is_that_of_its_rows() -> None:
    (good, pairs, mutants), = re.findall(r"^(\d+) of (\d+) pairs of a mutant and a level \((\d+) mutants\)", PAGE, re.M)
    assert (good, pairs, mutants) == (str(len(questions())), str(len(questions())), str(len(load_mutants())))
