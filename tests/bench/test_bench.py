"""`pabench bench`: several engines, one folder, one report; what fails is said and does not stop the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pabench.analysis import load_run
from pabench.bench import EngineResult, known_suites, load_suite
from pabench.errors import UsageError

STUB = '["{python}", "-m", "pabench", "stub", "--ttft-ms", "5", "--itl-ms", "1", "--port", "{port}"%s]'
SUITE = """
description = "two stubs"
probe = "tiny"
profile = "none"
workload = "smoke"

[[load]]
users = 2
num_requests = 4

[[load]]
rate_per_s = 20
num_requests = 4
"""


def engine(label: str, more: str = "") -> str:
    return f'\n[[engine]]\nlabel = "{label}"\ncommand = {STUB % more}\n'


def bench(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "suite.toml").write_text(text)
    return subprocess.run([sys.executable, "-m", "pabench", "bench", "suite.toml", "--out", "out", "--quiet"],
                          cwd=folder, capture_output=True, text=True, timeout=120)


def test_two_engines_at_two_loads(tmp_path: Path) -> None:
    result = bench(tmp_path, SUITE + engine("First one") + engine("second"))
    assert result.returncode == 0, result.stderr
    runs = [load_run(tmp_path / "out" / name / load) for name in ("first-one", "second")
            for load in ("2-users", "20-req-s-poisson")]
    assert [run.manifest.outcomes["ok"] for run in runs] == [4, 4, 4, 4]
    digests = [run.manifest.schedule_digest for run in runs]
    assert digests[:2] == digests[2:], "both engines are asked the same"
    assert (tmp_path / "out" / "report.html").exists()
    assert "report.html" in result.stdout


def test_an_engine_that_does_not_start_stops_nobody(tmp_path: Path) -> None:
    broken = '\n[[engine]]\nlabel = "broken"\ncommand = ["{python}", "-c", "raise SystemExit(\'no such model\')"]\n'
    missing = '\n[[engine]]\nlabel = "missing"\ncommand = ["no-such-engine"]\n'
    result = bench(tmp_path, SUITE + broken + missing + engine("sound"))
    assert result.returncode == 2
    assert "broken: not run to its end" in result.stdout
    assert "no such model" in result.stdout
    assert "missing: not run to its end" in result.stdout
    assert "sound: conformance not asked; every request answered as it should be" in result.stdout
    assert load_run(tmp_path / "out" / "sound" / "2-users").manifest.status == "complete"
    assert "Traceback" not in result.stderr


def test_wrong_tokens_are_no_success(tmp_path: Path) -> None:
    result = bench(tmp_path, SUITE + engine("liar", ', "--wrong-every", "3"'))
    assert result.returncode == 1, result.stderr
    assert "NOT every request answered rightly" in result.stdout


@pytest.mark.parametrize(("change", "says"), [
    (("rate_per_s = 20", "users = 2"), "loads must differ"),
    (('label = "b"', 'label = "A"'), "engine labels must differ"),
    (('label = "b"', 'label = "probe"'), "engine labels must differ"),
    (('probe = "tiny"', 'probe = "huge"'), "unknown probe preset 'huge'"),
    (('workload = "smoke"', 'workload = "nope"'), "unknown workload 'nope'"),
    (("num_requests = 4", "num_request = 4"), "num_request"),
    (("[[load]]", "[[load"), "cannot be read as TOML"),
])
def test_a_bad_suite_is_refused_before_any_work(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_text((SUITE + engine("a") + engine("b")).replace(*change, 1))
    with pytest.raises(UsageError, match=says):
        load_suite(str(path))


def test_the_suites_that_ship_are_sound() -> None:
    for name in known_suites():
        assert load_suite(name).engines


def test_an_engine_that_was_interrupted_has_no_good_verdict() -> None:
    result = EngineResult("x", conformance=0)
    assert result.exit_code == 2
    assert "interrupted" in result.verdict
