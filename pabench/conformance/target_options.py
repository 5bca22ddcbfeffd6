"""What the plugin's options name, as what a run asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.conformance.engine_target import EngineTarget
from pabench.conformance.implementation import ImplementationTarget
from pabench.conformance.targets import Target
from pabench.errors import UsageError


def target(config: pytest.Config) -> Target:
    """What the options name."""
    option = config.getoption
    url, launch, impl = option("--pabench-url"), option("--pabench-launch"), option("--pabench-impl")
    if impl and (url or launch):
        raise UsageError(f"both an engine, {url or launch}, and an implementation, {impl}: a run asks one of them")
    if impl:
        return ImplementationTarget(impl)
    return EngineTarget(
        url, dialect=option("--pabench-dialect"), model=option("--pabench-model"), probe=option("--pabench-probe"),
        launch=launch, ready_timeout_s=option("--pabench-ready-timeout"),
        folder=Path(option("--pabench-out")) if option("--pabench-out") else None)
