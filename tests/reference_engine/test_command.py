"""`python -m reference_engine` as its own process: it starts, serves, ends; bad starts give one line and exit 2."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from reference_engine.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def command(*args):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "reference_engine", *map(str, args)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def failed_start(capsys, *args):
    """What a command that must not start has to say."""
    assert main([str(arg) for arg in args]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_told_to_stop_even_in_mid_stream(tiny_probe, number):
    port = free_port()
    with command("--model", tiny_probe, "--port", port, "--max-model-len", 4096, "--served-model-name", "x") as process:
        line = process.stdout.readline()
        assert f"listening on http://127.0.0.1:{port}" in line, line + process.stderr.read()
        body = {"prompt": [0, 16, 300, 301, 302, 300], "max_tokens": 4000, "temperature": 0, "stream": True}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=20) as response:
            assert b"t301" in response.readline()
            start = time.monotonic()
            process.send_signal(number)
            assert process.wait(10) == 0
            assert time.monotonic() - start < 8
            assert b'data: {"error":' in response.read()  # the stream ends, and says why
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("args", "message"), [
    (("--model", "/nowhere"), "is no model folder"),
    (("--block-size", 0), "block_size is 0"),
    (("--max-model-len", 999999), "the model goes to"),
    (("--max-model-len", -5), "max_model_len"),
    (("--kv", "contiguous", "--num-blocks", 2), "hold no reservation"),
    (("--device", "abacus"), "abacus"),
    (("--port", 70000), "cannot listen"),
    (("--host", "203.0.113.7"), "cannot listen"),
])
def test_bad_starts_give_one_line_and_exit_2(tiny_probe, capsys, args, message):
    assert message in failed_start(capsys, "--model", tiny_probe, "--port", 0, *args)


def test_a_port_in_use(tiny_probe, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in failed_start(capsys, "--model", tiny_probe, "--port", port)
