"""`pabench conform` and `pabench replay`: the suite in a pytest of its own.

A process apart: neither the user's pytest configuration nor other plugins reach it, and whatever happens in it
ends, at the latest after the profile's time for a whole run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pabench.conformance.adapters import check_name
from pabench.conformance.cases import load_case
from pabench.conformance.expectations import load_expectations
from pabench.conformance.profiles import load_profile
from pabench.conformance.registry import load_registry
from pabench.conformance.results import check_new, load_results
from pabench.engines.address import DEFAULT_URL, MAX_STARTS, READY_TIMEOUT_S, base_url, parse_launch
from pabench.engines.keys import API_KEY_VARIABLE
from pabench.errors import (
    EXIT_COULD_NOT_RUN,
    EXIT_INTERRUPTED,
    EXIT_NOT_CONFORMING,
    EXIT_OK,
    UsageError,
)
from pabench.resources import data_dir

_LATE_GAUGES_S = 300.0  # ten cases wait for them, half a minute each where they move that late
_OUR_CODES = (EXIT_OK, EXIT_NOT_CONFORMING, EXIT_COULD_NOT_RUN, EXIT_INTERRUPTED)
_INTERRUPT_GRACE_S = 30.0
_ROOT = str(Path(__file__).resolve().parents[2])  # this very pabench, installed or in a checkout
# A run that ended in order exits with its code and this: Python itself exits 1 when it fails, which is no verdict.
_IN_ORDER = 64
_START = f"""import sys; sys.path.insert(0, {_ROOT!r})
from pabench.terminal.steadfast import make_output_steadfast; make_output_steadfast()
import pytest; sys.exit({_IN_ORDER} + pytest.main())"""


def run_suite(
    url: str | None = None,
    *,
    impl: str | None = None,
    launch: str | None = None,
    ready_timeout_s: float = READY_TIMEOUT_S,
    out: Path,
    profile: str = "ci",
    dialect: str | None = None,
    model: str | None = None,
    probe: str | Path | None = None,
    ids: Sequence[str] = (),
    expect: Path | None = None,
    seed: int = 0,
    api_key: str | None = None,
    live: bool = True,
    quiet: bool = False,
    patience: float = 1.0,
) -> int:
    """Ask the engine at `url`, or the implementation in process `impl`, all requirements of its level, or those in
    `ids`; write out/verdicts.jsonl.

    `impl` is a name that ships, package.module:factory or path/to/file.py:factory. `launch` is a command line that
    starts the engine, with {port} for its port; it is started again when it has died. `url` is then where it listens,
    by default that port of 127.0.0.1, and `ready_timeout_s` the longest wait for each start. `probe` is a folder with a
    probe.json, or a preset's name. Without `live` nothing is shown before the run has ended; `quiet` shows nothing but
    why a run could not be done.

    `patience`: so many times the profile's time for requests, cases and the run, for a slow engine.

    Returns 0 conforming, 1 not, 2 could not run, 130 interrupted. Raises UsageError for bad input, before anything
    is asked of the engine.
    """
    check_new(out)
    if seed < 0:
        raise UsageError(f"the seed is {seed}, expected 0 or more")
    registry = load_registry()
    for requirement_id in ids:
        registry[requirement_id]
    if expect is not None:
        load_expectations(expect, registry)
    options = [*_named(url, impl, dialect, model, probe, launch), *_limits(profile, ready_timeout_s, patience),
               *asked_options(out, profile, seed, ids)]
    if expect is not None:
        options += ["--pabench-expect", str(expect.resolve())]
    if not live:
        options.append("--pabench-at-end")
    limit_s = _run_timeout_s(profile, launch, ready_timeout_s, patience)
    return believed(_pytest(options, limit_s, api_key, quiet, out), out)


def asked_options(out: Path, profile: str, seed: int, ids: Sequence[str]) -> list[str]:
    """What the plugin is told of a run: where its results go, and what is asked."""
    return ["--pabench-out", str(out.resolve()), "--pabench-profile", profile, "--pabench-seed", str(seed),
            *(word for requirement_id in ids for word in ("--pabench-id", requirement_id))]


def believed(code: int, out: Path) -> int:
    """`code`, where verdicts.jsonl is whole and says so too: Python itself exits 1 when it fails."""
    if code not in (EXIT_OK, EXIT_NOT_CONFORMING):
        return code
    try:
        told = load_results(out).footer.exit_code
    except UsageError as error:
        print(f"could not run: {error}", file=sys.stderr)
        return EXIT_COULD_NOT_RUN
    return code if told == code else EXIT_COULD_NOT_RUN


def replay_case(
    path: Path,
    *,
    url: str | None = None,
    impl: str | None = None,
    launch: str | None = None,
    ready_timeout_s: float = READY_TIMEOUT_S,
    dialect: str | None = None,
    model: str | None = None,
    probe: str | Path | None = None,
    api_key: str | None = None,
    patience: float = 1.0,
) -> int:
    """Ask an engine or implementation, named as for `run_suite`, again just what the case file `path` tells.

    Returns 0 when it holds now, 1 when not, 2 when it could not be asked.
    """
    case = load_case(path)
    load_registry()[case.requirement]
    options = [*_named(url, impl, dialect, model, probe, launch), *_limits(case.profile, ready_timeout_s, patience),
               "--pabench-replay", str(path.resolve())]
    limit_s = _run_timeout_s(case.profile, launch, ready_timeout_s, patience)
    return _pytest(options, limit_s, api_key, quiet=False, out=None)


def _limits(profile: str, ready_timeout_s: float, patience: float) -> list[str]:
    load_profile(profile).patient(patience)
    if not 0 < ready_timeout_s < float("inf"):
        raise UsageError(f"the time to wait for an engine to serve is {ready_timeout_s:g} s, expected more than 0")
    return ["--pabench-ready-timeout", str(ready_timeout_s), "--pabench-patience", str(patience)]


def _run_timeout_s(profile: str, launch: str | None, ready_timeout_s: float, patience: float) -> float:
    """The profile's, what starting an engine again and again may take, and waiting for gauges that move late."""
    starts_s = 0 if launch is None else MAX_STARTS * ready_timeout_s
    return load_profile(profile).patient(patience).run_timeout_s + starts_s + _LATE_GAUGES_S


def _named(
    url: str | None, impl: str | None, dialect: str | None, model: str | None, probe: str | Path | None,
    launch: str | None,
) -> list[str]:
    """The options that name what is asked. Raises UsageError unless it is one thing."""
    engine = url or launch
    if (engine is None) == (impl is None):
        raise UsageError(f"got {'neither' if engine is None else 'both'} of an engine, --url or --launch, and an "
                         "implementation in process, --impl: a run asks one of them")
    if impl is not None:
        if any(value is not None for value in (dialect, model, probe)):
            raise UsageError("dialect, model and probe are of an engine at a URL; --impl names an implementation")
        check_name(impl)
        where, _, factory = impl.rpartition(":")
        return ["--pabench-impl", f"{Path(where).resolve()}:{factory}" if where.endswith(".py") else impl]
    if dialect is not None:
        from pabench.engines.dialects import dialect as known_dialect  # heavy, and seldom named

        known_dialect(dialect)
    folder = Path(probe).resolve() if probe is not None and Path(probe).is_dir() else probe
    given = {"--pabench-dialect": dialect, "--pabench-model": model, "--pabench-probe": folder}
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    if launch is None:
        assert url is not None, "one of them is given"
        return ["--pabench-url", base_url(url), *words]
    parse_launch(launch, url)
    base_url((url or DEFAULT_URL).replace("{port}", "1"))
    return ["--pabench-launch", launch, *(["--pabench-url", url] if url else []), *words]


def pytest_arguments(options: Sequence[str]) -> list[str]:
    """What pytest is told, beside the plugin's own options: the suites that ship, and nothing of the user's."""
    suites = data_dir("suites")
    level = "http" if {"--pabench-url", "--pabench-launch"}.intersection(options) else ""  # the others need not be read
    return [
        "-c", str(suites / "pytest.ini"), "--rootdir", str(suites),
        # The plugin by its module, not by its entry point: so it also works where pabench is not installed. Assertions
        # are left as they are written: a requirement fails by a text of its own.
        "-p", "no:pabench", "-p", "pabench.conformance.plugin", "-p", "pabench.conformance.live",
        "-p", "pabench.conformance.crashed", "-s", "-p", "no:cacheprovider", "-p", "no:terminal", "--assert", "plain",
        *options, str(suites / level),
    ]


def run_here(options: Sequence[str]) -> int:
    """The suite in this process, which is changed for good by it: call it in one that ends thereafter."""
    import pytest  # heavy

    environment = _environment(None)
    os.environ.clear()
    os.environ |= environment
    return int(pytest.main(pytest_arguments(options)))


def _pytest(options: list[str], timeout_s: float, api_key: str | None, quiet: bool, out: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="pabench-") as folder:
        journal = Path(folder, "journal")
        code = _ended([*options, "--pabench-journal", str(journal)], timeout_s, api_key, quiet)
        if code < 0:
            from pabench.conformance.crashed import conclude  # brings pytest

            return conclude(-code, journal, out, quiet=quiet)
    return code


def _ended(options: list[str], timeout_s: float, api_key: str | None, quiet: bool) -> int:
    """How the suite's process ended: one of our codes, or less than 0 of the signal that ended it."""
    # In a session of its own: what interrupts a terminal, or a whole process group, interrupts this process alone, and
    # it tells the other once. A second interrupt would break off what stops the engine.
    process = subprocess.Popen([sys.executable, "-B", "-P", "-c", _START, *pytest_arguments(options)],
                               env=_environment(api_key), stdout=subprocess.DEVNULL if quiet else None,
                               start_new_session=True)
    status = 0
    try:
        status = process.wait(timeout_s)
        code = status if status < 0 else status - _IN_ORDER
    except subprocess.TimeoutExpired:
        print(f"could not run: no end after {timeout_s:g} s, given up", file=sys.stderr)
        _let_end(process)  # an engine that it has started is to be stopped
        code = EXIT_COULD_NOT_RUN
    except KeyboardInterrupt:
        _let_end(process)
        code = EXIT_INTERRUPTED
    finally:
        process.kill()
        process.wait()
    return code if status < 0 or code in _OUR_CODES else EXIT_COULD_NOT_RUN


def _let_end(process: subprocess.Popen[bytes]) -> None:
    """Have it write down what it has and stop the engine, and wait for that, or until its time is up.

    Whoever interrupts once more is not heard: the engine would be left with its port and its memory.
    """
    process.send_signal(signal.SIGTERM)  # which `live` takes for an interrupt: that may be ignored, in the background
    until_s = time.monotonic() + _INTERRUPT_GRACE_S
    while process.poll() is None and time.monotonic() < until_s:
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            process.wait(until_s - time.monotonic())


def _environment(api_key: str | None) -> dict[str, str]:
    """An engine that is started there inherits it, so it is the caller's: no path of ours in front of the engine's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return environment if api_key is None else environment | {API_KEY_VARIABLE: api_key}
