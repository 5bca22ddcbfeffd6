"""Engines as processes: ready, dead, stuck, and nothing left behind."""

import os
import sys
import time
import tracemalloc

import pytest

from pabench.engines import EngineProcess, free_port
from pabench.errors import EngineDied, EngineTimeout, UsageError

STUB = [sys.executable, "-m", "pabench.stub", "--port", "{port}", "--ttft-ms", "1", "--itl-ms", "1"]
URL = "http://127.0.0.1:{port}"


def running(pid):
    """Whether process `pid` runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_engine_is_ready_inside_the_block_and_gone_behind_it(tmp_path):
    with EngineProcess(STUB, url=URL, log=tmp_path / "logs" / "engine.log", ready_timeout_s=20) as engine:
        assert engine.alive
        assert engine.returncode is None
        assert "{port}" not in engine.url
        assert running(engine.pid)
    assert not engine.alive
    assert not running(engine.pid)
    assert engine.returncode == 0
    assert "stub engine at" in engine.last_words()
    engine.stop()  # a second time does nothing


def test_an_engine_that_ends_at_once_has_died_and_its_last_words_are_told(tmp_path):
    command = [sys.executable, "-c", "import sys; print('no such \\x1b[31mmodel'); sys.exit(3)"]
    with pytest.raises(EngineDied, match=r"status 3[^\x1b]*no such \[31mmodel"):
        EngineProcess(command, url=URL, log=tmp_path / "log", ready_timeout_s=20).__enter__()


def test_the_last_error_is_told_not_what_was_logged_behind_it(tmp_path):
    lines = "starting\\nValueError: 0 heads\\nINFO: GET /health 503\\nINFO: bye"
    command = [sys.executable, "-c", f"print('{lines}')"]
    engine = EngineProcess(command, url=URL, log=tmp_path / "log", ready_timeout_s=20)
    with pytest.raises(EngineDied, match="status 0 before it could serve: ValueError: 0 heads"):
        engine.__enter__()


HEALTH_SERVER = """
import http.server, sys
answers = dict(pair.split("=") for pair in sys.argv[2:])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(answers.get(self.path, answers["else"])))
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("answers", [
    ["/v2/health/ready=200", "else=404"],
    ["/health=200", "else=401"],  # llama.cpp with a key: without it, nothing but this is answered
])
def test_an_engine_without_the_usual_routes_is_ready_too(tmp_path, answers):
    command = [sys.executable, "-c", HEALTH_SERVER, "{port}", *answers]
    with EngineProcess(command, url=URL, log=tmp_path / "log", ready_timeout_s=10) as engine:
        assert engine.alive


def test_a_starting_engine_is_not_made_to_generate(tmp_path):
    """SGLang generates a token behind /health."""
    command = [sys.executable, "-c", HEALTH_SERVER, "{port}", "/ready=200", "else=200"]
    with EngineProcess(command, url=URL, log=tmp_path / "log", ready_timeout_s=10) as engine:
        engine.stop()
    written = (tmp_path / "log").read_text()
    assert "GET /ready" in written
    assert "/health" not in written


def test_an_engine_that_is_never_ready_is_stopped(tmp_path):
    engine = EngineProcess(
        [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)"],
        url=URL, log=tmp_path / "log", ready_timeout_s=1.0)
    with pytest.raises(EngineTimeout, match=r"not ready after 1 s[^$]*loading"):
        engine.__enter__()
    assert not running(engine.pid)


def test_children_and_the_deaf_are_stopped_too(tmp_path, monkeypatch):
    monkeypatch.setattr("pabench.engines.launch._TERM_GRACE_S", 0.3)
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "import http.server\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    command = [sys.executable, "-c", script, "{port}"]
    with EngineProcess(command, url=URL, log=tmp_path / "log", ready_timeout_s=20) as engine:
        child = int((tmp_path / "child").read_text())
        assert running(child)
    assert engine.returncode == -9
    deadline = time.monotonic() + 5
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(child)


def test_a_command_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot start 'no-such-engine'"):
        EngineProcess(["no-such-engine"], url=URL, log=tmp_path / "log").__enter__()


def test_an_address_in_use_is_told_before_anything_starts(tmp_path):
    with EngineProcess(STUB, url=URL, log=tmp_path / "one.log", ready_timeout_s=20) as first:
        second = EngineProcess(STUB, url=first.url, log=tmp_path / "two.log")
        with pytest.raises(UsageError, match="already answers"):
            second.__enter__()
        assert second.pid is None
        assert first.alive


def test_the_environment_is_added_to(tmp_path):
    command = [sys.executable, "-c", "import os; print(os.environ['PABENCH_X'], os.environ['HOME'])"]
    engine = EngineProcess(command, url=URL, log=tmp_path / "log", env={"PABENCH_X": "extra"}, ready_timeout_s=20)
    with pytest.raises(EngineDied):
        engine.__enter__()
    assert engine.last_words() == f"extra {os.environ['HOME']}"


def test_free_ports_are_free():
    assert 1024 <= free_port() <= 65535


def test_of_a_long_log_only_the_end_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"Error: long ago\n" + b"x" * (20 << 20) + b"\nan error at the end\nbye\n")
    engine = EngineProcess(["nothing"], url=URL, log=log)
    tracemalloc.start()
    assert engine.last_words() == "an error at the end"
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


@pytest.mark.parametrize("words", [
    ["serve", "--api-key", "sk-123", "--port", "1"], ["serve", "--api-key=sk-123"], ["env", "HF_TOKEN=sk-123", "serve"],
    ["bash", "-c", "exec serve --api-key sk-123"], ["bash", "-c", "exec serve --api-key sk-123 --port 1"],
    ["bash", "-c", "exec serve --api-key 'sk-123' --token 'word-1' --port 1"],
])
def test_a_key_of_the_command_is_in_no_last_words(tmp_path, words):
    log = tmp_path / "log"
    log.write_text("error: cannot start with {'api_key': 'sk-123'}\n")
    assert EngineProcess(words, url=URL, log=log).last_words() == "error: cannot start with {'api_key': '***'}"
