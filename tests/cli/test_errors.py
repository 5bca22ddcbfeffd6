"""What goes wrong for a user gives one clear line, the right exit code, and keeps what was measured."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pabench.analysis import load_run
from pabench.engines import EngineProcess, free_port
from tests.cli.conftest import Run
from tests.report.synthetic import Made, write_run


def one_line(result: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert result.returncode == code, (result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for text in says:
        assert text in lines[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["doctor", "run --workload smoke", "conform --out c"])
def test_wrong_url(pabench: Run, command: str) -> None:
    one_line(pabench(*command.split(), "--url", f"http://127.0.0.1:{free_port()}"), 2, "nothing answers")


@pytest.mark.parametrize("command", ["doctor", "run --workload smoke", "conform --out c"])
def test_no_url_at_all(pabench_here: Run, command: str) -> None:
    one_line(pabench_here(*command.split(), "--url", "localhost"), 2, "localhost", "http://")


def test_something_else_listens(pabench_here: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one_line(pabench_here("doctor", "--url", f"http://127.0.0.1:{server.getsockname()[1]}", "--timeout-s", "1"), 2)


@pytest.mark.parametrize("timeout_s", ["0", "nan", "inf", "-1"])
def test_a_time_to_wait_is_a_time(pabench_here: Run, timeout_s: str) -> None:
    done = pabench_here("doctor", "--url", "http://127.0.0.1:9", "--timeout-s", timeout_s)
    one_line(done, 2, f"the time to wait for an answer is {timeout_s} s, expected more than 0")


def test_a_folder_that_cannot_be_made_keeps_nothing(pabench_here: Run, stub: EngineProcess) -> None:
    done = pabench_here("run", "--url", stub.url, "--workload", "smoke", "--out", "/proc/x", "--quiet")
    one_line(done, 2, "cannot write /proc/x: ", ": give another folder")
    assert "kept" not in done.stderr
    assert "room" not in done.stderr


def test_a_damaged_manifest_is_told_by_field_and_value(pabench_here: Run, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Made("one", requests=4))
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(told | {"status": "done\x1b[2J"}))
    one_line(pabench_here("results", "show", "run"), 2, "1 validation error: status: Input should be",
             "got 'done\\x1b[2J'")


def test_unknown_workload(pabench_here: Run) -> None:
    one_line(pabench_here("run", "--url", "http://127.0.0.1:9", "--workload", "nope"), 2, "nope", "sharegpt-mini")


def test_unknown_suite(pabench_here: Run) -> None:
    one_line(pabench_here("bench", "nope"), 2, "nope", "demo")


def test_unknown_preset(pabench_here: Run) -> None:
    one_line(pabench_here("probe", "build", "--preset", "nope"), 2, "nope", "gqa")


def test_a_model_is_not_overwritten_by_a_probe(pabench_here: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = ("probe", "build", "--preset", "tiny", "--out", tmp_path)
    for more in ((), ("--gguf",)):
        one_line(pabench_here(*command, *more), 2, "no KV probe (config.json)", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_no_probe_in_the_folder(pabench_here: Run, tmp_path: Path) -> None:
    one_line(pabench_here("probe", "check", tmp_path), 2, "holds no KV probe")


def test_a_damaged_probe(pabench_here: Run, tiny_probe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in tiny_probe.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text("{}")
    result = pabench_here("probe", "check", folder)
    assert result.returncode == 1
    assert "config.json differs" in result.stdout


def test_a_folder_that_is_no_model(pabench: Run, tmp_path: Path) -> None:
    one_line(pabench("serve", "--model", tmp_path), 2, "config.json")


@pytest.mark.parametrize("command", ["report", "matrix"])
def test_nothing_to_show(pabench_here: Run, tmp_path: Path, command: str) -> None:
    one_line(pabench_here(command, tmp_path), 2)


@pytest.mark.parametrize("command", ["stub", "serve"])
def test_port_in_use(pabench: Run, tiny_probe: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        model = ["--model", str(tiny_probe)] if command == "serve" else []
        one_line(pabench(command, *model, "--port", server.getsockname()[1]), 2, "in use")


def test_the_key_is_not_in_the_environment(pabench_here: Run) -> None:
    one_line(pabench_here("doctor", "--url", "http://127.0.0.1:9", "--api-key-env", "NO_SUCH_KEY"), 2, "NO_SUCH_KEY")


def test_results_are_not_overwritten(pabench_here: Run, stub: EngineProcess) -> None:
    arguments = ("run", "--url", stub.url, "--workload", "smoke", "--out", "run", "--quiet")
    assert pabench_here(*arguments).returncode == 0
    one_line(pabench_here(*arguments), 2, "holds something already")


def start_run(stub: EngineProcess, out: Path, *before: str) -> subprocess.Popen[str]:
    """A run of about 30 s, in the middle: some requests ended, some in flight. `before`: words before the command."""
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "pabench", "run", "--url", stub.url, "--workload", "sharegpt-mini",
         "--users", "8", "--num-requests", "100", "--out", str(out), "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(f.stat().st_size > 4096 for f in out.glob("*journal*")):
        time.sleep(0.2)
    time.sleep(2)
    return process


@pytest.mark.parametrize(("number", "before"), [
    (signal.SIGINT, ()),
    (signal.SIGTERM, ()),
    (signal.SIGTERM, ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")),  # as a shell runs what stands before an "&"
], ids=["INT", "TERM", "TERM in the background"])
def test_an_interrupted_run_keeps_what_was_measured(
    stub: EngineProcess, tmp_path: Path, number: signal.Signals, before: tuple[str, ...]
) -> None:
    process = start_run(stub, tmp_path / "run", *before)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "interrupted"
    assert sum(run.manifest.outcomes.values()) == 100
    assert run.manifest.outcomes["ok"] > 0
    assert run.manifest.outcomes["unsent"] > 0


def test_an_engine_that_dies_keeps_what_was_measured(stub: EngineProcess, tmp_path: Path) -> None:
    process = start_run(stub, tmp_path / "run")
    assert stub.pid is not None
    os.kill(stub.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2, errors
    assert len(errors.strip().splitlines()) == 1, errors
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "failed"
    assert run.manifest.outcomes["ok"] > 0
    assert sum(run.manifest.outcomes.values()) == 100


@pytest.mark.parametrize(("command", "name"), [
    (("gate", "run", "--baseline", "{url}", "--candidate", "{url}", "--workload", "sharegpt-mini"), "gate"),
    (("sweep", "--url", "{url}", "--workload", "sharegpt-mini", "--users", "4,8"), "sweep"),
])
def test_what_is_interrupted_names_the_folder_that_it_chose(
    stub: EngineProcess, tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    words = [word.replace("{url}", stub.url) for word in command]
    with subprocess.Popen([sys.executable, "-m", "pabench", *words, "--quiet"], cwd=tmp_path, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not any(tmp_path.rglob("*journal*")):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.endswith(f"-{name}")
    assert process.returncode == 130, errors
    assert errors.strip() == f"pabench: interrupted; what was measured is kept in results/{folder.name}"


def test_where_nothing_was_measured_nothing_is_kept(tmp_path: Path) -> None:
    """Ctrl-C while the engine is examined: it has taken the connection, and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen([sys.executable, "-m", "pabench", "run", "--url", url, "--workload", "smoke"],
                                   cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        connection, _ = server.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "pabench: interrupted, before anything was measured\n")
    assert not (tmp_path / "results").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system; tests/load shows the same with a stand-in")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(pabench: Run, stub: EngineProcess, small_disk: Path) -> None:
    result = pabench("run", "--url", stub.url, "--workload", "sharegpt-mini", "--users", "16", "--num-requests", "64",
                     "--out", small_disk / "run", "--quiet", timeout=120)
    one_line(result, 2, "No space left")
    one_line(pabench("probe", "build", "--preset", "tiny", "--out", small_disk / "probe"), 2, "No space left")


def test_json_goes_to_stdout_and_nothing_else(pabench: Run, stub: EngineProcess) -> None:
    result = pabench("doctor", "--url", stub.url, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["facts"]["dialect"]


def test_a_stub_beside_the_caller_calibrates_no_other_machine(pabench_here: Run) -> None:
    command = ("run", "--url", "http://127.0.0.1:9", "--workload", "smoke", "--ray", "auto", "--calibrate")
    one_line(pabench_here(*command), 2, "--calibrate", "--ray")


def test_a_model_is_of_an_engine(pabench_here: Run) -> None:
    one_line(pabench_here("conform", "--impl", "reference-paged", "--model", "x", "--out", "c"), 2, "model", "--impl")


@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_gate_looks_at_both_engines_before_it_measures(
    pabench_here: Run, stub: EngineProcess, tmp_path: Path, side: str
) -> None:
    given = {"--baseline": stub.url, "--candidate": stub.url, f"--{side}": f"http://127.0.0.1:{free_port()}"}
    command = ("gate", "run", "--quiet", "--workload", "smoke", "--out", "gate")
    done = pabench_here(*command, *(word for pair in given.items() for word in pair))
    one_line(done, 2, f"pabench: {side}: nothing answers at ")
    assert not (tmp_path / "gate").exists()


@pytest.mark.parametrize(("option", "value", "says"), [
    ("--baseline", "http://[::1", "which is no URL"),
    ("--out", "file/x", "cannot use file/x/baseline: Not a directory"),
])
def test_a_gate_that_cannot_run_is_no_regression(
    pabench_here: Run, stub: EngineProcess, tmp_path: Path, option: str, value: str, says: str
) -> None:
    (tmp_path / "file").touch()
    given = {"--baseline": stub.url, "--candidate": stub.url, "--workload": "smoke", "--out": "gate"} | {option: value}
    one_line(pabench_here("gate", "run", "--quiet", *(word for pair in given.items() for word in pair)), 2, says)
