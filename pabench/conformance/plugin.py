"""The pytest plugin: requirements as tests, against an engine at a URL or an implementation in process.

    pytest --pabench-url http://127.0.0.1:8000 --pabench-profile smoke --pabench-out results/x  my_tests/
    pytest --pabench-impl acme.testing:allocator --pyargs pabench.suites.alloc   # in a checkout: suites/alloc

Without `--pabench-url`, `--pabench-launch` or `--pabench-impl` it does nothing but skip what needs one. This file is
imported by every pytest run of an environment that has pabench installed, so it imports nothing heavy.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pabench.conformance.levels import SUITE_LEVELS
from pabench.resources import data_dir

if TYPE_CHECKING:
    from pabench.conformance.alloc import UnderTest as AllocatorUnderTest
    from pabench.conformance.engine import EngineUnderTest
    from pabench.conformance.kernel import UnderTest as KernelUnderTest
    from pabench.conformance.session import EngineSession

SUITE_RUN = "pabench-suite-run"
_WITHOUT_URL = "needs an engine: pass --pabench-url URL or --pabench-launch COMMAND"
_WITHOUT_IMPL = "needs an implementation in process: pass --pabench-impl NAME, or package.module:factory"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all beginning with --pabench."""
    group = parser.getgroup("pabench", "conformance of an LLM engine, or of an allocator or a kernel")
    add = group.addoption
    add("--pabench-url", metavar="URL", help="the engine under test; without it, tests that need one are skipped")
    add("--pabench-launch", metavar="COMMAND",
        help="starts the engine under test, and again when it has died; {port} stands for its port")
    add("--pabench-ready-timeout", metavar="SECONDS", type=float, default=600.0,
        help="longest wait for a launched engine to serve (default: 600)")
    add("--pabench-impl", metavar="NAME|FACTORY",
        help="the implementation under test: one that ships, package.module:factory or path/to/file.py:factory")
    add("--pabench-dialect", metavar="NAME", help="how the engine is spoken to (found out by default)")
    add("--pabench-model", metavar="NAME", help="the model to ask for (the first that is served by default)")
    add("--pabench-probe", metavar="DIR|NAME", help="the KV probe that is served, or its preset (found out by default)")
    add("--pabench-profile", metavar="NAME", default="smoke", help="smoke, ci or full (default: smoke)")
    add("--pabench-patience", metavar="FACTOR", type=float, default=1.0,
        help="for a slow engine: so many times the time for each request, each case and the run (default: 1)")
    add("--pabench-out", metavar="DIR", help="folder for verdicts.jsonl and the files of failed cases")
    add("--pabench-expect", metavar="FILE", help="expected failures and disabled requirements (TOML)")
    add("--pabench-id", metavar="ID", action="append", default=[], help="run only this requirement (repeatable)")
    add("--pabench-seed", metavar="N", type=int, default=0, help="seed of all prompts (default: 0)")
    add("--pabench-replay", metavar="FILE", help="run only the failed case that this file describes")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; with something to ask, set up the run."""
    config.addinivalue_line("markers", "requirement(id, case=None): the test decides a requirement")
    if any(config.getoption(f"--pabench-{each}") for each in ("url", "launch", "impl")):
        from pabench.conformance.running import SuiteRun

        if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
            raise pytest.UsageError("a run of the suite is one process, which asks one engine: leave -n away")
        if config.getoption("--pabench-launch"):  # a job that is cancelled stops the engine too
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        config.pluginmanager.register(SuiteRun.from_config(config), SUITE_RUN)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the suites that ship, those of other levels are not even imported: they may need what is not there."""
    run: Any = config.pluginmanager.get_plugin(SUITE_RUN)
    if run is None or collection_path.name not in SUITE_LEVELS or collection_path.name == run.target.level:
        return None
    return True if collection_path.parent == data_dir("suites") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With nothing to ask, skip all requirements and say why."""
    if config.pluginmanager.get_plugin(SUITE_RUN) is not None:
        return
    for item in items:
        marker = item.get_closest_marker("requirement")
        if marker is not None:
            is_http = str((*marker.args, "http/")[0]).startswith("http/")
            item.add_marker(pytest.mark.skip(reason=_WITHOUT_URL if is_http else _WITHOUT_IMPL))


@pytest.fixture(scope="session")
def engine_session(request: pytest.FixtureRequest) -> EngineSession:
    """The engine under test for the whole run; tests take `engine`."""
    session: EngineSession = _run(request, "http").target.session
    return session


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> EngineUnderTest:
    """The engine under test, for one test: see pabench.conformance.engine."""
    under_test: EngineUnderTest = _run(request, "http").subject_for(request.node)
    return under_test


@pytest.fixture
def allocator(request: pytest.FixtureRequest) -> AllocatorUnderTest:
    """The block manager under test, for one test: see pabench.conformance.alloc."""
    under_test: AllocatorUnderTest = _run(request, "alloc").subject_for(request.node)
    return under_test


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> KernelUnderTest:
    """The paged attention under test, for one test: see pabench.conformance.kernel."""
    under_test: KernelUnderTest = _run(request, "kernel").subject_for(request.node)
    return under_test


def _run(request: pytest.FixtureRequest, level: str) -> Any:
    """The run, where it is of this level; else the test is skipped."""
    run: Any = request.config.pluginmanager.get_plugin(SUITE_RUN)
    if run is None or run.target.level != level:
        pytest.skip(_WITHOUT_URL if level == "http" else _WITHOUT_IMPL)
    return run
