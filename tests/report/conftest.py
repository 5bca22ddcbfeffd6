"""A report of made-up runs, and a browser to open it in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pabench.report import write_report
from tests.report.synthetic import (
    HOSTILE,
    Made,
    failing_rows,
    passing_rows,
    write_findings,
    write_run,
    write_search,
    write_suite,
    write_trace,
)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three engines: paged, contiguous (it fails and is wrong), and one that tells nothing about its memory."""
    top = tmp_path_factory.mktemp("results")
    for users in (2, 8, 24):
        write_run(top / f"paged/u{users:02}", Made("reference paged", users=users, requests=40))
        contiguous = Made("reference contiguous", users=users, requests=40, reserve_tokens=512, wrong=2 * (users == 8))
        write_run(top / f"contiguous/u{users:02}", contiguous)
        write_trace(top / f"paged/u{users:02}/load.blocks.jsonl", reserve_blocks=0)
        write_trace(top / f"contiguous/u{users:02}/load.blocks.jsonl", reserve_blocks=32)
    write_run(top / "silent/u08", Made("silent engine", requests=40, tells_memory=False, chunk=4, status="interrupted"))
    write_findings(top / "paged")
    write_suite(top / "paged/conformance", passing_rows())
    write_suite(top / "contiguous/conformance", failing_rows(), exit_code=1)
    return top


@pytest.fixture(scope="session")
def report(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML file of `results`."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([results / "paged", results / "contiguous", results / "silent"], out)
    return out


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Searches for the capacity of two engines, one of them broken off."""
    top = tmp_path_factory.mktemp("searched")
    write_search(top / "a", "reference paged", 17.0)
    write_search(top / "b", "reference contiguous", 6.0, finished=False)
    return top


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every text that an engine supplies tries to run."""
    top = tmp_path_factory.mktemp("hostile")
    made = Made(HOSTILE, requests=24, wrong=2, errors=(HOSTILE,), diagnosis=HOSTILE, workload=HOSTILE)
    write_run(top / "a", made)
    write_run(top / "b", Made("=cmd|' /C calc'!A0", requests=24, reserve_tokens=512, workload=HOSTILE))
    write_trace(top / "a/load.blocks.jsonl", reserve_blocks=0, seq=HOSTILE)
    write_findings(top / "a", HOSTILE)
    write_search(top / "searched", HOSTILE, 6.0, workload=HOSTILE)
    write_suite(top / "a/conformance", failing_rows(HOSTILE), exit_code=1, engine={"dialect": HOSTILE})
    out = top / "report.html"
    write_report([top], out)
    return out


@pytest.fixture(scope="module")  # not longer: while it is open, no other test can run an event loop of its own
def browser() -> Iterator[Any]:
    """Headless Chromium. Without one the tests fail, unless PABENCH_NO_BROWSER=1 says that this is known."""
    if os.environ.get("PABENCH_NO_BROWSER") == "1":
        pytest.skip("PABENCH_NO_BROWSER=1: THE REPORT IS NOT TESTED IN A BROWSER")
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium on the PATH: install it, or set PABENCH_NO_BROWSER=1 to leave these tests out")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
