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
from reference_engine.arguments import describe, engine_config, parser
from reference_engine.config import EngineConfig
from reference_engine.model.families import read_model_config

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
        assert "small batches in layers compiled whole" in line
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
    (("--max-model-len", 0), "max_model_len is 0"),
    (("--kv", "contiguous", "--num-blocks", 2), "hold no reservation"),
    (("--no-enable-chunked-prefill", "--max-num-batched-tokens", 64), "without chunked prefill"),
    (("--max-num-seqs", 64, "--max-num-batched-tokens", 32), "below max_num_seqs"),
    (("--preemption-mode", "swap", "--num-swap-blocks", 0), "num_swap_blocks is 0"),
    (("--speculation", "ngram", "--num-speculative-tokens", 0), "num_speculative_tokens is 0"),
    (("--speculation", "draft"), "needs a model"),
    (("--draft-model", "/nowhere"), "nothing else does"),
    (("--speculation", "draft", "--draft-model", "/nowhere"), "is no model folder"),
    (("--device", "abacus"), "abacus"),
    (("--threads", 0), "--threads is 0, expected at least 1"),
    (("--port", 70000), "cannot listen"),
    (("--host", "203.0.113.7"), "cannot listen"),
    (("--host", ".."), "cannot listen"),
])
def test_bad_starts_give_one_line_and_exit_2(tiny_probe, capsys, args, message):
    assert message in failed_start(capsys, "--model", tiny_probe, "--port", 0, *args)


@pytest.mark.parametrize(("told", "count", "used"), [(None, None, 1), ("2", None, 2), ("2", 3, 3)])
def test_one_thread_unless_told_otherwise(monkeypatch, told, count, used):
    if told is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    script = ("import torch; from reference_engine.serving.command import use_threads; "
              f"use_threads({count}); print(torch.get_num_threads())")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.split() == [str(used)]


def test_every_switch_of_the_engine_has_a_flag_and_the_same_default(tiny_probe):
    config = engine_config(parser().parse_args(["--model", str(tiny_probe)]))
    longest = read_model_config(tiny_probe).max_position_embeddings
    assert config == EngineConfig(max_model_len=longest)
    given = (
        "--max-model-len 128 --kv contiguous --reservation pow2 --block-size 8 --num-blocks 99 --kv-cache-dtype int8 "
        "--weight-dtype int8 --no-enable-prefix-caching --max-num-seqs 7 --max-num-batched-tokens 300 "
        "--no-enable-chunked-prefill --batching static --scheduling-policy priority --preemption-mode swap "
        "--num-swap-blocks 5 --speculation ngram --num-speculative-tokens 3 --attention-backend torch "
        "--enforce-eager --check-integrity")
    expected = EngineConfig(
        max_model_len=128, kv="contiguous", reservation="pow2", block_size=8, num_blocks=99, kv_dtype="int8",
        weight_dtype="int8", prefix_caching=False, max_num_seqs=7, max_num_batched_tokens=300, chunked_prefill=False,
        batching="static", policy="priority", preemption="swap", num_swap_blocks=5, speculation="ngram",
        num_speculative_tokens=3, attention_backend="torch", enforce_eager=True, check_integrity=True)
    assert engine_config(parser().parse_args(["--model", str(tiny_probe), *given.split()])) == expected
    drafting = ["--speculation", "draft", "--draft-model", str(tiny_probe)]
    drafting = engine_config(parser().parse_args(["--model", str(tiny_probe), *drafting]))
    assert drafting.draft_model == tiny_probe


def test_the_start_line_tells_what_is_on():
    line = describe(EngineConfig(max_model_len=64, num_blocks=9, preemption="swap", speculation="ngram",
                                 attention_backend="numba"))
    assert line == ("paged KV cache, 9 blocks of 16 tokens, prefix caching, continuous batching, chunked prefill, "
                    "fcfs, preemption by swap to 2048 host blocks, speculation by ngram, 4 tokens, attention in numba")
    line = describe(EngineConfig(
        max_model_len=64, kv="contiguous", reservation="oracle", batching="static", policy="priority", kv_dtype="fp8",
        weight_dtype="int8", preemption="wait", chunked_prefill=False, attention_backend="torch",
        enforce_eager=True, check_integrity=True))
    assert line == ("contiguous KV cache (reservation oracle), 2048 blocks of 16 tokens, static batching, priority, "
                    "preemption by wait, attention in torch, eager, KV fp8, weights int8, integrity checks")


def test_a_draft_model_of_other_tokens_is_refused_before_any_weight_is_read(tiny_probe, tmp_path, capsys):
    folder = tmp_path / "draft"
    folder.mkdir()
    config = json.loads((tiny_probe / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 77}))
    asked = ("--speculation", "draft", "--draft-model", folder)
    assert "has 77 token ids" in failed_start(capsys, "--model", tiny_probe, "--port", 0, *asked)


def test_a_port_in_use(tiny_probe, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in failed_start(capsys, "--model", tiny_probe, "--port", port)
