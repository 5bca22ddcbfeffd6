"""Files of the suite are loaded as modules too: their marker must be known where pabench is not installed."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, as the plugin does."""
    config.addinivalue_line("markers", "requirement(id, case=None): the test decides a requirement")
