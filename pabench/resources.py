"""Where the data that ships with pabench lies: `suites/` and `workloads/`, in a wheel or in a source checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_dir(name: str) -> Path:
    """Folder `name` ("suites" or "workloads") of an installed wheel, or of the checkout when run from one."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
