"""Engines as processes of our own: start, wait until they can serve, stop with all their children."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import urlsplit

from pabench.engines.cleaning import clean, secrets_in, without_key
from pabench.engines.client import MODELS_PATH
from pabench.errors import EngineDied, EngineTimeout, UsageError

# Of an engine that nobody knows yet; the first that there is tells. Only SGLang has the first, and behind its /health a
# token is generated.
_HEALTH_PATHS = ("/ready", "/health", MODELS_PATH, "/v2/health/ready")
_POLL_S = 0.1
_TERM_GRACE_S = 10.0
_LEAST_SECRET = 4  # characters: what is shorter stands in many a word
_TAIL_BYTES = 20_000
_ERROR = re.compile(r"(?i:error|exception|fatal|abort|killed|panic|assert)\b")  # behind it, servers log that they end
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EngineProcess:
    """An engine started for a with-block: a process group of its own, its output in `log`.

    `{port}` in `command` and `url` becomes one free port. `env` is added to this process's environment.
    Entering starts it, unless `launch` has, and waits until it says that it can serve, asked as EngineClient.healthy
    asks; raises EngineDied with the engine's last words, or EngineTimeout.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        url: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        ready_timeout_s: float = 180.0,
    ) -> None:
        port = str(free_port())
        self.command = [word.replace("{port}", port) for word in command]
        self.url = url.replace("{port}", port).rstrip("/")
        self.log = log
        self._env = {**os.environ, **(env or {})}
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit status; None while it runs, negative when a signal ended it."""
        return None if self._process is None else self._process.poll()

    def launch(self) -> None:
        """Start it, and do not wait: whoever calls this sees to it that `stop` is called. Raises UsageError."""
        self._check_address_is_free()
        self._start()

    def __enter__(self) -> EngineProcess:
        if self._process is None:
            self.launch()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and its children: TERM, then KILL after 10 s. A second call does nothing."""
        if self._process is None or self._stopped:
            return
        self._stopped = True
        try:
            if self.alive:
                self._signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_TERM_GRACE_S)
        finally:  # an interrupt ends the patience, not this
            # Children may outlive the leader, and a stubborn leader is ended here too.
            self._signal(signal.SIGKILL)
            self._process.wait()
            if self._output is not None:
                self._output.close()

    def last_words(self) -> str:
        """The last line of the output that speaks of an error, else the last of all, made safe for a terminal and
        without what secrets the command holds.
        """
        try:
            with self.log.open("rb") as file:  # its end alone: an engine may have written gigabytes
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                data = file.read(_TAIL_BYTES)
        except FileNotFoundError:
            return ""
        text = data.decode("utf-8", "replace")
        for secret in secrets_in(self.command):  # engines write down how they were started
            if len(secret) >= _LEAST_SECRET:
                text = without_key(text, secret)
        lines = [clean(line) for line in text.splitlines()]
        written = [line for line in reversed(lines) if line]
        return next((line for line in written if _ERROR.search(line)), written[0] if written else "it wrote nothing")

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._output = self.log.open("wb")
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            self._output.close()
            raise UsageError(f"cannot start {self.command[0]!r}: {error.strerror}. Is it installed?") from error

    def _check_address_is_free(self) -> None:
        parts = urlsplit(self.url)
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", parts.port or 80), 1.0):
            raise UsageError(f"something already answers at {self.url}: stop it, or take another port")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._ready_timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                raise EngineDied(f"the engine ended with status {self.returncode} before it could serve: "
                                 f"{self.last_words()} (all it wrote: {self.log})")
            if self._answers_health():
                return
            time.sleep(_POLL_S)
        raise EngineTimeout(f"the engine is not ready after {self._ready_timeout_s:g} s at {self.url}: "
                            f"{self.last_words()} (all it wrote: {self.log})")

    def _answers_health(self) -> bool:
        for path in _HEALTH_PATHS:
            try:
                with _DIRECT.open(f"{self.url}{path}", timeout=5.0) as answer:
                    return bool(answer.status == 200)
            except urllib.error.HTTPError as error:
                if error.code >= 500:  # below: no such route, or none without a key, as llama.cpp has it of all others
                    return False
            except (OSError, ValueError, http.client.HTTPException):
                return False
        return False

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
