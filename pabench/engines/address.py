"""How a command names an engine, by its URL or by what starts it, and how long and how often it may start.

What is checked before anything is begun, so it imports nothing heavy.
"""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from pabench.engines.cleaning import clean
from pabench.errors import UsageError

DEFAULT_URL = "http://127.0.0.1:{port}"
READY_TIMEOUT_S = 600.0  # large models take minutes to load
MAX_STARTS = 12          # in one run: an engine that dies of everything is not worth more


def base_url(url: str) -> str:
    """`url` without a trailing slash or `/v1`. Raises UsageError when it is no http URL."""
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        told = clean(url.rpartition("@")[2])  # without what may be a password
        raise UsageError(f"not an engine's URL: got {told!r}, expected something like http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise UsageError("the URL holds a user name or a password: take it out, keys go by --api-key-env")
    if parts.query:
        raise UsageError("the URL has a query (?…): take it out, keys go by --api-key-env")
    return url.strip().split("#")[0].rstrip("/").removesuffix("/v1").rstrip("/")


def parse_launch(command: str, url: str | None, option: str = "--launch") -> list[str]:
    """The words of a launch command that was given as `option`. Raises UsageError when it is none, or names no port."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{option} is {command!r}, which is no command line: {error}") from error
    if not words:
        raise UsageError(f"{option} is empty, expected the command that starts the engine, with {{port}} for its port")
    if url is None and not any("{port}" in word for word in words):
        otherwise = ", or say with --url where the engine will listen" if option == "--launch" else ""
        raise UsageError(f"{option} is {command!r}, which has no {{port}}: put it where the engine's port belongs"
                         f"{otherwise}")
    return words
