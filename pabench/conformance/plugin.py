"""The pytest plugin: requirements as tests, against an engine at a URL.

    pytest --pabench-url http://127.0.0.1:8000 --pabench-profile smoke --pabench-out results/x  my_tests/

Without `--pabench-url` it does nothing but skip what needs an engine. This file is imported by every pytest run of
an environment that has pabench installed, so it imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pabench.conformance.engine import EngineUnderTest
    from pabench.conformance.session import EngineSession

SUITE_RUN = "pabench-suite-run"
_WITHOUT_URL = "needs an engine: pass --pabench-url URL"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all beginning with --pabench."""
    group = parser.getgroup("pabench", "conformance of an LLM engine")
    add = group.addoption
    add("--pabench-url", metavar="URL", help="the engine under test; without it, tests that need one are skipped")
    add("--pabench-dialect", metavar="NAME", help="how the engine is spoken to (found out by default)")
    add("--pabench-model", metavar="NAME", help="the model to ask for (the first that is served by default)")
    add("--pabench-probe", metavar="DIR|NAME", help="the KV probe that is served, or its preset (found out by default)")
    add("--pabench-profile", metavar="NAME", default="smoke", help="smoke, ci or full (default: smoke)")
    add("--pabench-out", metavar="DIR", help="folder for verdicts.jsonl and the files of failed cases")
    add("--pabench-expect", metavar="FILE", help="expected failures and disabled requirements (TOML)")
    add("--pabench-id", metavar="ID", action="append", default=[], help="run only this requirement (repeatable)")
    add("--pabench-seed", metavar="N", type=int, default=0, help="seed of all prompts (default: 0)")
    add("--pabench-replay", metavar="FILE", help="run only the failed case that this file describes")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; with a URL, set up the run."""
    config.addinivalue_line("markers", "requirement(id, case=None): the test decides a requirement")
    if config.getoption("--pabench-url"):
        from pabench.conformance.running import SuiteRun

        config.pluginmanager.register(SuiteRun.from_config(config), SUITE_RUN)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an engine, skip all requirements and say why."""
    if config.getoption("--pabench-url"):
        return
    for item in items:
        if item.get_closest_marker("requirement") is not None:
            item.add_marker(pytest.mark.skip(reason=_WITHOUT_URL))


@pytest.fixture(scope="session")
def engine_session(request: pytest.FixtureRequest) -> EngineSession:
    """The engine under test for the whole run; tests take `engine`."""
    run = request.config.pluginmanager.get_plugin(SUITE_RUN)
    if run is None:
        pytest.skip(_WITHOUT_URL)
    session: EngineSession = run.session
    return session


@pytest.fixture
def engine(request: pytest.FixtureRequest, engine_session: EngineSession) -> EngineUnderTest:
    """The engine under test, for one test: see pabench.conformance.engine."""
    run: Any = request.config.pluginmanager.get_plugin(SUITE_RUN)
    under_test: EngineUnderTest = run.engine_for(request.node)
    return under_test
