"""Mutants at work: reference engines with a fault in them, and what asks them, forked from one process.

It has torch and pytest loaded, which would take longer, each time anew, than most faults take to show.

The tool never imports the reference engine: suites/mutants/host.py does, in the forked processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from pabench.conformance.levels import level_of_id
from pabench.conformance.profiles import PROFILES, Profile, load_profile
from pabench.conformance.registry import load_registry
from pabench.conformance.runner import asked_options, believed, run_here
from pabench.engines import free_port
from pabench.errors import EXIT_COULD_NOT_RUN, EngineDied
from pabench.resources import data_dir

ROOT = Path(__file__).resolve().parents[2]
COMMON = ("--block-size", "16", "--dtype", "float32", "--served-model-name", "probe")
DEFAULTS = ("--num-blocks", "256", "--max-num-seqs", "16", "--max-model-len", "512")
# What each forked process would import again. Nothing that imports Triton: it asks for its interpreter beforehand.
PRELOADED = ["reference_engine.serving.command", "pytest", "pabench.conformance.live",
             "pabench.conformance.engine_target"]
_READY_S = 60.0


def host() -> ModuleType:
    """suites/mutants/host.py: no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("pabench_mutant_host", data_dir("suites") / "mutants" / "host.py")
    if spec is None or spec.loader is None:
        raise RuntimeError("suites/mutants/host.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preset_for(ids: Sequence[str]) -> str:
    """The probe to serve to whom these requirements are asked: small, with windows or eyes where they need them."""
    registry = load_registry()
    needs = {need for each in ids if level_of_id(each) == "http" for need in registry[each].needs}
    special = {"window": "window", "mixed_windows": "mixed", "images": "vision"}
    return next((preset for need, preset in special.items() if need in needs), "tiny")


@contextlib.contextmanager
def engine(name: str | None, model: Path, log: Path, *options: str) -> Iterator[str]:
    """The URL of an engine with the fault of mutant `name`, or with none; its output goes to `log`.

    `options` come behind the defaults, and the last word counts. Raises EngineDied when it does not start.
    """
    port = free_port()
    args = ["--model", str(model), "--port", str(port), *COMMON, *DEFAULTS, *options]
    with _forked(_serve, name, args, str(log)) as process:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield url


def ask_in_process(name: str, level: str, ids: Sequence[str], *, out: Path, profile: str, log: Path) -> int:
    """Ask what the fault of mutant `name` is in the requirements `ids` of `level`, or all; results in `out`.

    Exit codes as `pabench conform` has them.
    """
    return _exit_code(load_profile(profile), out, _conform, name, level, list(ids), str(out), profile, str(log))


def ask_engine(
    url: str, ids: Sequence[str], *, out: Path, profile: str, log: Path, seed: int = 0, patience: float = 1.0
) -> int:
    """Ask the engine at `url` the requirements `ids`, or all of its level; exit codes and results as of `run_suite`."""
    options = ["--pabench-url", url, "--pabench-patience", str(patience), *asked_options(out, profile, seed, ids)]
    return _exit_code(load_profile(profile).patient(patience), out, _run_suite, options, str(log))


def _exit_code(profile: Profile, out: Path, target: Any, *args: Any) -> int:
    """Of the suite in a forked process, ended with the profile's time for a whole run."""
    with _forked(target, *args) as process:
        process.join(profile.run_timeout_s)
        code = process.exitcode
    return EXIT_COULD_NOT_RUN if code is None else believed(code, out)


def _serve(name: str | None, args: list[str], log: str) -> None:
    _write_to(log)
    raise SystemExit(host().serve(name, args))


def _conform(name: str, level: str, ids: list[str], out: str, profile: str, log: str) -> None:
    _write_to(log)
    PROFILES[profile] = dataclasses.replace(PROFILES[profile], shrink_s=0)  # a kill needs no smallest case
    hosting = host()
    impl = hosting.impl_of(hosting.load(name), level)
    raise SystemExit(hosting.conform(name, impl, out=Path(out), profile=profile, ids=ids))


def _run_suite(options: list[str], log: str) -> None:
    _write_to(log)
    raise SystemExit(run_here(options))


def _write_to(log: str) -> None:
    """In the forked process: all output goes into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


@contextlib.contextmanager
def _forked(target: Any, *args: Any) -> Iterator[BaseProcess]:
    """`target` in a process of its own, stopped at the end. The first call makes the process that others fork from."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _wait(url: str, process: BaseProcess, log: Path) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.is_alive():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=1):
            return
        time.sleep(0.05)
    raise EngineDied(f"the engine did not start: {log.read_text() if log.exists() else 'no log'}")
