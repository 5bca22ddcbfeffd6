"""Keys of engines: taken as mounted secrets hold them, and one clear line where one cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pabench.resources import data_dir
from tests.cli.conftest import Run
from tests.cli.test_errors import one_line

KEY = "sekrit-key"


class _Keyed(BaseHTTPRequestHandler):
    """Lists a model to whoever has the key, and serves nothing else."""

    def do_GET(self) -> None:
        right = self.headers.get("Authorization") == f"Bearer {KEY}"
        found = 401 if not right else 200 if self.path == "/v1/models" else 404
        body = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
        self.send_response(found)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def keyed() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Keyed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


COMMANDS = ("doctor", "run --workload text --out r", "conform --out c", "sweep --workload text --users 1 --out s")


def test_a_key_as_a_mounted_secret_holds_it(pabench_here: Run, keyed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", f" {KEY}\r\n")
    done = pabench_here("doctor", "--url", keyed, "--api-key-env", "ENGINE_KEY", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["facts"]["model"] == "m"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_that_no_header_can_hold(
    pabench_here: Run, keyed: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("ENGINE_KEY", "sek\nrit")
    done = pabench_here(*command.split(), "--url", keyed, "--api-key-env", "ENGINE_KEY")
    one_line(done, 2, "the API key in ENGINE_KEY holds characters that no HTTP header can")
    monkeypatch.setenv("ENGINE_KEY", "\n")
    one_line(pabench_here(*command.split(), "--url", keyed, "--api-key-env", "ENGINE_KEY"), 2, "ENGINE_KEY", "is empty")


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[1], COMMANDS[3]])
def test_a_wrong_key_is_told_from_none(
    pabench_here: Run, keyed: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    one_line(pabench_here(*command.split(), "--url", keyed), 2, "asks for a key (status 401)", "--api-key-env")
    monkeypatch.setenv("ENGINE_KEY", "another")
    done = pabench_here(*command.split(), "--url", keyed, "--api-key-env", "ENGINE_KEY")
    one_line(done, 2, "refuses the key in ENGINE_KEY (status 401)")
    assert "another" not in done.stderr


@pytest.mark.parametrize(("key", "says"), [
    ("sek\nrit", "the API key in PABENCH_API_KEY holds characters that no HTTP header can"),
    ("another", "refuses the key that it was given (status 401)"),
])
def test_the_plugin_says_the_same(
    keyed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, says: str
) -> None:
    monkeypatch.setenv("PABENCH_API_KEY", key)
    command = [sys.executable, "-m", "pytest", "--pabench-url", keyed, "--pabench-id", "http/ring-exact",
               str(data_dir("suites") / "http")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    told = done.stdout + done.stderr
    assert says in told
    assert "Traceback" not in told
    assert "INTERNALERROR" not in told
    assert done.returncode in (2, 4), told
