"""The plugin in a pytest of its own: inert without an engine, exact about what became of each case with one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.results import FILE_NAME, SPEC_VERSION, Header, ResultsWriter
from pabench.conformance.runner import believed, replay_case, run_suite
from pabench.engines import EngineProcess, free_port
from pabench.errors import UsageError
from tests.conformance import mutant_hosts

OWN_TESTS = """
import pytest
from pabench.conformance.verify import Ask

@pytest.mark.requirement("http/ring-exact", case="mine")
def test_ring(engine):
    engine.case = "my ring"
    engine.ask([Ask(engine.rings([20])[0][0], 20, "A")])

@pytest.mark.requirement("http/usage-exact")
def test_of_mine_that_is_broken(engine):
    raise ValueError("the test's own fault")

@pytest.mark.requirement("http/abort-frees", case="vacuous")
def test_that_asks_nothing(engine):
    engine.ask([])

@pytest.mark.requirement("http/concurrent-isolation")
def test_by_assert(engine):
    assert engine.profile.name == "full", "wrong profile"

def test_ordinary():
    pass
"""


def run_pytest(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on one file in a folder of its own, with the plugin."""
    (folder / "test_own.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -W error\n")
    path = os.pathsep.join([str(mutant_hosts.ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:pabench", "-p", "pabench.conformance.plugin", "-p",
         "no:cacheprovider", "-rA", *options],
        cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def engine_url(tiny_probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mutant_hosts.engine(None, tiny_probe, tmp_path_factory.mktemp("engine") / "log") as url:
        yield url


def test_without_an_engine_requirements_are_skipped(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, OWN_TESTS)
    assert done.returncode == 0, done.stdout
    assert "4 skipped" in done.stdout
    assert "1 passed" in done.stdout
    assert "needs an engine: pass --pabench-url URL" in done.stdout


# The second runs in the process before the suite's own, which brings it all anyway.
@pytest.mark.parametrize("module", ["pabench.conformance.plugin", "pabench.conformance.runner"])
def test_costs_other_runs_nothing(module: str) -> None:
    heavy = ["numpy", "aiohttp", "rich", "pabench.conformance.running", "pabench.probe"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(mutant_hosts.ROOT)})
    assert done.stdout.strip() == "[]"


def test_tests_of_ones_own(engine_url: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, OWN_TESTS, "--pabench-url", engine_url, "--pabench-out", "out")
    assert done.returncode == 1, done.stdout
    results = load_results(tmp_path / "out")
    found = {row.name: row.outcome for row in results.rows}
    assert found == {"http/ring-exact[mine]": Outcome.PASS, "http/usage-exact": Outcome.ERROR,
                     "http/abort-frees[vacuous]": Outcome.ERROR, "http/concurrent-isolation": Outcome.FAIL}
    assert "1 passed" in done.stdout or "2 passed" in done.stdout
    errors = {row.requirement: row.text for row in results.rows if row.outcome is Outcome.ERROR}
    assert "ValueError: the test's own fault" in errors["http/usage-exact"]
    assert "the test asked the engine nothing" in errors["http/abort-frees"]


def test_of_tests_that_decide_no_requirement_pytest_tells(engine_url: str, tmp_path: Path) -> None:
    plain = "def test_that_asks(engine):\n    engine.ask_alone(engine.braid(20, 4, 'A').request, 'A')\n"
    assert run_pytest(tmp_path, plain, "--pabench-url", engine_url).returncode == 0
    assert run_pytest(tmp_path, plain + "    assert 0\n", "--pabench-url", engine_url).returncode == 1


def test_several_processes_are_refused(engine_url: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, OWN_TESTS, "--pabench-url", engine_url, "-n", "2")
    assert (done.returncode, "one process, which asks one engine: leave -n away" in done.stderr) == (4, True)


def test_an_unknown_requirement_is_an_error(engine_url: str, tmp_path: Path) -> None:
    text = "import pytest\n@pytest.mark.requirement('http/none')\ndef test_x(engine): pass\n"
    done = run_pytest(tmp_path, text, "--pabench-url", engine_url)
    assert done.returncode == 4
    assert "marked with 'http/none', which is no requirement" in done.stderr


def test_two_cases_of_one_name_are_an_error(engine_url: str, tmp_path: Path) -> None:
    text = "import pytest\n" + "".join(
        f"@pytest.mark.requirement('http/ring-exact')\ndef test_{x}(engine): pass\n" for x in "ab")
    done = run_pytest(tmp_path, text, "--pabench-url", engine_url)
    assert done.returncode == 4
    assert "are both http/ring-exact: give one a case" in done.stderr


def test_nothing_at_the_url_is_exit_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = run_suite(f"http://127.0.0.1:{free_port()}", out=tmp_path / "out", profile="smoke")
    said = capfd.readouterr()
    assert code == 2
    assert "could not run: nothing answers at http://127.0.0.1:" in said.err
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()


@pytest.mark.parametrize(("change", "complaint"), [
    ({"profile": "huge"}, "unknown profile 'huge'"),
    ({"ids": ["http/none"]}, "unknown requirement 'http/none'"),
    ({"dialect": "klingon"}, "unknown dialect 'klingon'"),
    ({"expect": Path("none.toml")}, "cannot read the expectations in none.toml"),
    ({"url": "ftp://x"}, "not an engine's URL"),
    ({"seed": -1}, "the seed is -1, expected 0 or more"),
])
def test_bad_input_is_said_before_anything_runs(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    arguments: dict[str, object] = {"url": "http://127.0.0.1:1", "out": tmp_path / "out"} | change
    with pytest.raises(UsageError, match=complaint):
        run_suite(**arguments)  # type: ignore[arg-type]


def test_verdicts_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("kept")
    with pytest.raises(UsageError, match=r"already holds a verdicts\.jsonl: name a new folder"):
        run_suite("http://127.0.0.1:1", out=tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == "kept"


def test_expected_failures(engine_url: str, tmp_path: Path) -> None:
    (tmp_path / "expect.toml").write_text("""
[[expected]]
id = "http/ring-exact[mine]"
when = { dialect = "reference" }
reason = "it is said to fail"
issue = "https://example.org/1"
[[expected]]
id = "http/concurrent-isolation"
reason = "the profile is not full"
issue = "https://example.org/2"
[[disabled]]
id = "http/usage-exact"
reason = "no time"
""")
    done = run_pytest(tmp_path, OWN_TESTS, "--pabench-url", engine_url, "--pabench-out", "out",
                      "--pabench-expect", "expect.toml")
    results = load_results(tmp_path / "out")
    assert {row.name: row.outcome for row in results.rows} == {
        "http/ring-exact[mine]": Outcome.XPASS, "http/concurrent-isolation": Outcome.XFAIL,
        "http/usage-exact": Outcome.DISABLED, "http/abort-frees[vacuous]": Outcome.ERROR}
    assert done.returncode == 1  # for the XPASS
    assert results.footer.exit_code == 1


def test_a_dead_engine_is_a_crash_and_the_rest_is_not_run(tiny_probe: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(mutant_hosts.host().__file__), "vllm_ttft_prefix_oracle__input_stops_engine", "--",
               "--model", str(tiny_probe), "--port", "{port}", *mutant_hosts.COMMON, "--num-blocks", "64",
               "--max-model-len", "512"]
    text = """
import os, signal
import pytest
from pabench.conformance.verify import Ask

@pytest.mark.requirement("http/ring-exact", case="before")
def test_before(engine):
    engine.ask([Ask(engine.rings([20])[0][0], 4, "A")])

@pytest.mark.requirement("http/concurrent-isolation")
def test_killer(engine):
    pending = engine.start([Ask(engine.rings([20])[0][0], 400, "the deadly request")])
    os.killpg(int(os.environ["ENGINE_PID"]), signal.SIGKILL)
    pending.verify()

@pytest.mark.requirement("http/usage-exact")
def test_after(engine):
    raise AssertionError("must not be run")
"""
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=tmp_path / "log") as process:
        os.environ["ENGINE_PID"] = str(process.pid)
        done = run_pytest(tmp_path, text, "--pabench-url", process.url, "--pabench-out", "out")
        del os.environ["ENGINE_PID"]
    results = load_results(tmp_path / "out")
    assert {row.name: row.outcome for row in results.rows} == {
        "http/ring-exact[before]": Outcome.PASS, "http/concurrent-isolation": Outcome.CRASH,
        "http/usage-exact": Outcome.NOTRUN}
    crash = next(row for row in results.rows if row.outcome is Outcome.CRASH)
    assert "under way: the deadly request (20 prompt tokens, max_tokens 400), 1 of 1" in crash.text
    assert (done.returncode, results.footer.exit_code) == (1, 1)


@pytest.mark.parametrize("broken", ["row", "footer"])
def test_a_run_that_breaks_has_no_verdict(engine_url: str, tmp_path: Path, broken: str) -> None:
    """A full disk, say, after a case that passed: neither conforming nor not."""
    text = OWN_TESTS.partition("@pytest.mark.requirement(\"http/usage")[0] + f"""
from pabench.conformance.results import ResultsWriter

def full(self, *args):
    raise OSError(28, "No space left on device")

@pytest.mark.requirement("http/usage-exact")
def test_last(engine):
    engine.metrics()
    ResultsWriter.{broken} = full
"""
    done = run_pytest(tmp_path, text, "--pabench-url", engine_url, "--pabench-out", "out")
    assert done.returncode == 2, done.stdout
    assert "No space left on device" in done.stdout + done.stderr
    with pytest.raises(UsageError, match="has no footer: its run was cut short"):
        load_results(tmp_path / "out")


def test_only_a_whole_file_makes_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python exits 1 too when it fails: that is no verdict."""
    assert believed(1, tmp_path) == 2
    assert "cannot read the verdicts" in capsys.readouterr().err
    with ResultsWriter(tmp_path / FILE_NAME) as writer:
        writer.header(Header(SPEC_VERSION, "0", "smoke", 0, "", ""))
        writer.footer(1, 0.0, "complete")
    assert [believed(code, tmp_path) for code in (0, 1, 2, 130)] == [2, 1, 2, 130]


def test_replay_asks_the_same_again(
    engine_url: str, tiny_probe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with mutant_hosts.engine("flashinfer_append_noncontiguous", tiny_probe, tmp_path / "log") as broken:
        code = run_suite(broken, out=tmp_path / "out", profile="smoke", ids=["http/ring-exact"], seed=5, quiet=True)
        assert code == 1
        failed = [row for row in load_results(tmp_path / "out").rows if row.replay]
        case = tmp_path / "out" / failed[0].replay
        assert f"pabench replay {case} --url {broken}" in failed[0].text
        capfd.readouterr()
        assert replay_case(case, url=broken) == 1
    assert next(line for line in failed[0].text.splitlines() if "expected" in line) in capfd.readouterr().out
    assert replay_case(case, url=engine_url) == 0
    recorded = json.loads(case.read_text())
    assert recorded["exchanges"][-1]["answer"]["choices"][0]["token_ids"]


def test_a_model_that_says_always_the_same_is_unsupported_never_a_pass(
    tiny_probe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not known for the probe, since it does not say so and its ring does not come back: every answer is SEP."""
    model = tmp_path / "model"
    shutil.copytree(tiny_probe, model, ignore=shutil.ignore_patterns("probe.json"))
    ids = ["http/ring-exact", "http/abort-frees"]
    with mutant_hosts.engine("tgi_mqa_heads_div_tp__several", model, tmp_path / "log") as url:
        assert run_suite(url, out=tmp_path / "out", profile="smoke", ids=ids, live=False) == 2
        shown = " ".join(capfd.readouterr().out.split())
        results = load_results(tmp_path / "out")
        assert run_suite(url, out=tmp_path / "out2", profile="smoke", ids=ids[1:], quiet=True) == 0
    assert "could not decide: " in shown
    assert "no answer could be judged: the engine is not known to serve the KV probe" in shown
    assert results.header.engine["probe"] is None
    assert {row.outcome for row in results.rows if row.requirement == ids[0]} == {Outcome.UNSUPPORTED}
    assert {row.reason for row in results.rows if row.requirement == ids[0]} == {
        "the engine is not known to serve the KV probe (if it does, name it with --probe), and by self-consistency: "
        "4 different prompts have one and the same answer: the model cannot show what it reads"}


@pytest.mark.parametrize("interrupt", [os.killpg, os.kill], ids=["by a terminal", "the parent alone"])
def test_an_interrupted_run_keeps_what_it_found(
    engine_url: str, tmp_path: Path, interrupt: Callable[[int, int], None]
) -> None:
    code = ("import sys; from pathlib import Path; from pabench.conformance.runner import run_suite; "
            f"sys.exit(run_suite({engine_url!r}, out=Path('out'), profile='smoke'))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               start_new_session=True, env=os.environ | {"PYTHONPATH": str(mutant_hosts.ROOT)})
    assert process.stdout is not None
    first = process.stdout.readline()
    interrupt(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert first.startswith("PASS         http/ring-exact[kB-1]")
    assert process.returncode == 130
    assert "interrupted after" in rest
    assert "conforming:" not in rest
    results = load_results(tmp_path / "out")
    assert (results.footer.status, results.footer.exit_code) == ("interrupted", 130)
    assert len(results.rows) >= 1
