"""An engine that the run starts: again after it died, and what of is found out."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.engine_target import EngineTarget
from pabench.conformance.runner import replay_case, run_suite
from pabench.engines.address import parse_launch
from pabench.engines.cleaning import without_secrets
from pabench.engines.keys import API_KEY_VARIABLE
from pabench.errors import UsageError
from tests.conformance import mutant_hosts

MUTANT = "vllm_ttft_prefix_oracle__input_stops_engine"


def launch_of(mutant: str, model: Path) -> str:
    """The command that serves `model` with the fault of `mutant`."""
    return shlex.join([sys.executable, str(mutant_hosts.host().__file__), mutant, "--", "--model", str(model), "--port",
                       "{port}", *mutant_hosts.COMMON, "--num-blocks", "256", "--max-model-len", "512"])


def test_what_killed_it_is_found_and_the_rest_is_asked(
    tiny_probe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One of nine malformed bodies ends the engine, while three others run."""
    launch, out = launch_of(MUTANT, tiny_probe), tmp_path / "out"
    ids = ["http/usage-exact", "http/bad-input-then-healthy", "http/empty-prompt-then-healthy"]
    assert run_suite(launch=launch, out=out, profile="smoke", ids=ids) == 1
    results = load_results(out)
    rows = {row.name: row for row in results.rows}
    crash = rows.pop("http/bad-input-then-healthy")
    assert crash.outcome is Outcome.CRASH
    assert {row.outcome for row in rows.values()} == {Outcome.PASS}
    assert len(rows) == 3
    end = next(line for line in crash.text.splitlines() if line.startswith("  end "))
    assert "last words: IndexError: index 2147483647 is out of bounds" in end
    assert '"prompt": [300, 2147483647], "max_tokens": 4}, alone, ends a new process too' in end
    killer = json.loads((out / crash.replay).read_text())["killer"]
    assert killer["request"]["path"] == "/v1/completions"
    assert killer["curl"].endswith("""-d '{"model": "probe", "prompt": [300, 2147483647], "max_tokens": 4}'""")
    assert f"--launch {shlex.quote(launch)}" in crash.text
    # One process a start: at first, after the crash, and after what was asked again ended that one too.
    assert sorted(path.name for path in out.glob("*.log")) == ["engine-2.log", "engine-3.log", "engine.log"]
    footer = results.footer
    assert footer.starts == 3
    assert 0 < footer.starting_s < footer.duration_s
    assert f"({footer.duration_s:.0f} s, {footer.starting_s:.0f} of them for 3 starts of the engine)" in (
        capfd.readouterr().out)
    assert replay_case(out / crash.replay, launch=launch) == 1
    shown = capfd.readouterr().out
    assert "alone, ends a new process too" in shown
    assert "of them for 2 starts of the engine)" in shown  # nothing is left to ask a third of


@pytest.mark.parametrize("starts", [1, 2])
def test_who_cannot_be_started_again_is_given_up(starts: int, tiny_probe: Path, tmp_path: Path) -> None:
    """Not for the request to be found (the second start), or not for what is asked behind that (the third)."""
    launch = shlex.join(["sh", "-c", f"test {{start}} -le {starts} && exec {launch_of(MUTANT, tiny_probe)}"])
    ids = ["http/bad-input-then-healthy", "http/empty-prompt-then-healthy", "http/chunk-boundary-exact"]
    assert run_suite(launch=launch, out=tmp_path / "out", profile="smoke", ids=ids, quiet=True) == 1
    results = load_results(tmp_path / "out")
    crash, *others = results.rows
    assert crash.outcome is Outcome.CRASH
    assert ("alone, ends a new process too" in crash.text) == (starts == 2)
    assert {row.outcome for row in others} == {Outcome.NOTRUN}
    assert all("not to be started again: the engine ended with status 1 before it could serve" in row.reason
               for row in others)
    assert results.footer.starts == starts + 1  # and no more for the cases to come


def test_an_engine_that_does_not_start_is_exit_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = shlex.join([sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)", "{port}"])
    assert run_suite(launch=command, out=tmp_path / "out", profile="smoke") == 2
    said = capfd.readouterr().err
    assert "could not run: the engine ended with status 3 before it could serve: no such model" in said
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()


def test_a_key_that_an_engine_ends_with_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was started again in vain, and prints its configuration: `gone` is the reason of all rows to come."""
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-secret-key")
    launch = shlex.join(["sh", "-c", f"echo error: api_key=${API_KEY_VARIABLE}; exit 3", "{port}"])
    target = EngineTarget(None, launch=launch, dialect=None, model=None, probe=None, folder=tmp_path)
    session = SimpleNamespace(gone="it died")
    monkeypatch.setattr(target, "_session", session)
    target.make_ready()
    assert session.gone.startswith("it died; not to be started again: the engine ended with status 3")
    assert "error: api_key=*** (" in session.gone


@pytest.mark.parametrize(("change", "complaint"), [
    ({"launch": "vllm serve"}, r"which has no \{port\}: put it where the engine's port belongs"),
    ({"launch": ""}, "--launch is empty"),
    ({"launch": "vllm 'serve {port}"}, "which is no command line: No closing quotation"),
    ({"launch": "vllm {port}", "url": "ftp://x"}, "not an engine's URL"),
    ({"launch": "vllm {port}", "impl": "reference-paged"}, "got both of an engine, --url or --launch, and an impl"),
    ({"launch": "vllm {port}", "ready_timeout_s": 0}, "the time to wait for an engine to serve is 0 s"),
])
def test_bad_input_is_said_before_anything_starts(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        run_suite(out=tmp_path / "out", **change)  # type: ignore[arg-type]


def test_a_command_needs_no_port_where_the_url_has_one() -> None:
    assert parse_launch("my-engine --quiet", "http://127.0.0.1:8000") == ["my-engine", "--quiet"]


@pytest.mark.parametrize(("command", "recorded"), [
    ("vllm serve m --port {port}", "vllm serve m --port {port}"),
    ("vllm serve m --api-key abc --max-num-seqs 4", "vllm serve m --api-key '***' --max-num-seqs 4"),
    ("env HF_TOKEN=abc vllm --api-key=abc x", "env 'HF_TOKEN=***' vllm '--api-key=***' x"),
    ("docker run --env=HF_TOKEN=abc img", "docker run '--env=HF_TOKEN=***' img"),
    ("vllm serve m --api-key one two --port 8", "vllm serve m --api-key '***' '***' --port 8"),
    ("env API_KEYS=a,b vllm --max-num-batched-tokens 64", "env 'API_KEYS=***' vllm --max-num-batched-tokens 64"),
    ("vllm --keys-to-ignore a --tokenizer b", "vllm --keys-to-ignore a --tokenizer b"),
])
def test_keys_are_not_recorded(command: str, recorded: str) -> None:
    assert without_secrets(command) == recorded


def test_nor_are_those_in_a_shells_command() -> None:
    shell, option, line = shlex.split(without_secrets("bash -c 'exec vllm m --api-key abc --port {port}'"))
    assert (shell, option) == ("bash", "-c")
    assert shlex.split(line) == ["exec", "vllm", "m", "--api-key", "***", "--port", "{port}"]


ENGINE_OF_A_USER = """
import json, os, sys, time
print(json.dumps(dict(os.environ)), flush=True)
time.sleep(60)
"""


def test_a_launched_engine_has_the_callers_environment_and_ends_with_the_group(tmp_path: Path) -> None:
    """As `timeout` and CI runners end a command: TERM to its whole process group. The engine has one of its own."""
    script, out = tmp_path / "engine.py", tmp_path / "out"
    script.write_text(ENGINE_OF_A_USER)
    command = [sys.executable, "-m", "pabench", "conform", "--launch", f"{sys.executable} {script} {{port}}", "--out",
               str(out)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    log = out / "engine.log"
    wait_for(lambda: log.exists() and log.read_text().endswith("}\n"))
    told = json.loads(log.read_text())
    assert {name: value for name, value in told.items() if not name.startswith("PYTEST_")} == environment
    (engine,) = running(script)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(40) == 130
    wait_for(lambda: not runs(engine, str(script)))


def test_nor_does_it_outlive_a_pytest_of_ones_own_that_is_cancelled(tmp_path: Path) -> None:
    """As CI runners cancel a job: TERM to pytest alone."""
    script, log = tmp_path / "engine.py", tmp_path / "out" / "engine.log"
    script.write_text(ENGINE_OF_A_USER)
    (tmp_path / "test_own.py").write_text(
        "import pytest\n@pytest.mark.requirement('http/usage-exact')\ndef test_mine(engine): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:pabench", "-p", "pabench.conformance.plugin", "-p",
               "no:cacheprovider", "--pabench-launch", f"{sys.executable} {script} {{port}}", "--pabench-out", "out"]
    path = os.pathsep.join([str(mutant_hosts.ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: log.exists() and log.read_text().endswith("}\n"))
    (engine,) = running(script)
    try:
        process.terminate()
        assert process.wait(40) == 130
        assert not runs(engine, str(script))
    finally:
        if runs(engine, str(script)):
            os.kill(engine, signal.SIGKILL)


# In place of the suite's pytest: it takes a second to stop its engine.
SLOW_TO_STOP = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(1)
    pathlib.Path("stopped").touch()
    sys.exit(64 + 130)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def test_who_interrupts_twice_waits_for_the_engine_to_be_stopped(tmp_path: Path) -> None:
    code = (f"import sys; from pabench.conformance import runner; runner._START = {SLOW_TO_STOP!r}; "
            "sys.exit(runner._pytest([], 60.0, None, quiet=True, out=None))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(mutant_hosts.ROOT)})
    wait_for((tmp_path / "ready").exists)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    _, said = process.communicate(timeout=40)
    assert (process.returncode, said) == (130, "")
    assert (tmp_path / "stopped").exists()


def running(script: Path) -> list[int]:
    """The processes that are Python with this script."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if runs(pid, str(script))]


def runs(pid: int, script: str) -> bool:
    """Whether the process is Python with this script."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [script.encode()]
    except OSError:
        return False


def wait_for(done: Callable[[], bool], within_s: float = 60.0) -> None:
    until_s = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < until_s
        time.sleep(0.05)
