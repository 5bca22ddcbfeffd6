"""API keys: taken from the environment, never from an argument, which shows in process lists and in manifests."""

from __future__ import annotations

import os

from pabench.errors import UsageError

API_KEY_VARIABLE = "PABENCH_API_KEY"  # where a run of the suite finds it: the suite is a process apart


def key_in(variable: str) -> str | None:
    """The key in an environment variable, without what is not of it (mounted secrets end in a newline); None where the
    variable is not set or empty. Raises UsageError for what no header can hold.
    """
    key = os.environ.get(variable, "").strip()
    _require_sendable(key, f"the API key in {variable}")
    return key or None


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that bears the key. Raises UsageError for what no header can hold."""
    if not api_key:
        return {}
    _require_sendable(api_key, "the API key")
    return {"Authorization": f"Bearer {api_key}"}


def _require_sendable(key: str, what: str) -> None:
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{what} holds characters that no HTTP header can: expected printable ASCII")
