"""The kernel level of the suite fails kernels that are broken, and passes ours."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pabench.conformance import load_results
from pabench.conformance.hosting import PRELOADED
from pabench.conformance.mutants import load_mutants
from pabench.conformance.verdicts import NOT_CONFORMING, Outcome
from tests.conformance import mutant_hosts

MUTANTS = {name: mutant.owes("kernel") for name, mutant in load_mutants().items() if mutant.owes("kernel")}
_END_S = 240.0


def conform(name: str | None, impl: str | None, out: Path, ids: tuple[str, ...], profile: str) -> None:
    """In the forked process: ask a mutant, or what is sound, requirement by requirement, each up to its first failure.

    What has failed is told as it is, not made smaller first.
    """
    from pabench.conformance import profiles

    out.mkdir()
    descriptor = os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    profiles.PROFILES[profile] = dataclasses.replace(profiles.PROFILES[profile], shrink_s=0)
    os.environ["PYTEST_ADDOPTS"] = "-x"
    host = mutant_hosts.host()
    if name is not None:
        host.load(name).apply()
        impl = host.impl_of(host.load(name), "kernel")
    for each in ids:
        host.conform(None, impl, out=out / each, profile=profile, ids=[each])


def outcomes(name: str | None, impl: str | None, out: Path, *ids: str, profile: str = "ci") -> dict[str, Outcome]:
    """What became of the requirements."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=conform, args=(name, impl, out, ids, profile), daemon=True)
    process.start()
    process.join(_END_S)
    try:
        assert not process.is_alive(), f"no end within {_END_S} s"
        return {each: load_results(out / each).by_requirement()[0].outcome for each in ids}
    finally:
        process.kill()
        process.join()


def test_triton_is_not_there_before_it_is_asked_for_its_interpreter() -> None:
    """What is imported before runs on a GPU alone: each mutant of its kernels would fail, whatever its fault."""
    words = f"import sys, {', '.join(PRELOADED)}; print('triton' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(mutant_hosts.ROOT / "kernels"), *sys.path])}
    done = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.mutants
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_failed_by_what_it_names(name: str, tmp_path: Path) -> None:
    found = outcomes(name, None, tmp_path / "out", *MUTANTS[name])
    assert {each: found.get(each) for each in MUTANTS[name] if found.get(each) not in NOT_CONFORMING} == {}
