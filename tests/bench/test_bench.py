"""`pabench bench`: several engines, one folder, one report; what fails is said and does not stop the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pabench.analysis import load_run
from pabench.bench import EngineResult
from pabench.bench_suite import known_suites, load_suite
from pabench.errors import UsageError
from pabench.resources import data_dir

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
    assert [run.manifest.seed for run in runs] == [0, 1, 0, 1], "no load finds another's prompts in the cache"
    assert (tmp_path / "out" / "report.html").exists()
    assert "report.html" in result.stdout


def started(out: Path) -> list[str]:
    """Engine and load of all runs in the order in which they began."""
    runs = {f"{path.parent.parent.name}/{path.parent.name}": load_run(path.parent).manifest.started_at
            for path in out.glob("*/*/manifest.json")}
    return sorted(runs, key=lambda name: runs[name])


@pytest.mark.parametrize(("turns", "order"), [
    ("false", ["a/2-users", "a/20-req-s-poisson", "b/2-users", "b/20-req-s-poisson"]),
    ("true", ["a/2-users", "b/2-users", "b/20-req-s-poisson", "a/20-req-s-poisson"]),
])
def test_loads_come_engine_by_engine_or_in_turns(tmp_path: Path, turns: str, order: list[str]) -> None:
    result = bench(tmp_path, f"turns = {turns}{SUITE}{engine('a')}{engine('b')}")
    assert result.returncode == 0, result.stderr
    assert started(tmp_path / "out") == order


def test_who_dies_in_its_turn_stops_nobody(tmp_path: Path) -> None:
    dying = engine("a", ', "--die-after", "3"')
    result = bench(tmp_path, "turns = true" + SUITE + dying + engine("b"))
    assert result.returncode == 2
    assert "a: not run to its end" in result.stdout
    assert "b: conformance not asked; every request answered as it should be" in result.stdout


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


MODEL = """model_command = ["{python}", "-c", "import sys; print('made it'); %s", "{model}"]"""
TEXT = SUITE.replace('"smoke"', '"text"').replace("num_requests = 4", "num_requests = 2")


def test_a_model_that_is_no_probe(tmp_path: Path) -> None:
    make = MODEL % "import pathlib; pathlib.Path(sys.argv[1]).mkdir()"
    result = bench(tmp_path, make + TEXT + engine("one") + engine("two"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "model").is_dir()
    assert not (tmp_path / "out" / "probe").exists()
    assert "made it" in (tmp_path / "out" / "model.log").read_text()
    run = load_run(tmp_path / "out" / "one" / "2-users")
    assert run.manifest.outcomes["ok"] == 2
    assert run.requests["verified_tokens"].isna().all()
    # So short, most are INVALID: a multiple is of two that are not.
    verdicts = [[load_run(tmp_path / "out" / name / load).manifest.validity for name in ("one", "two")]
                for load in ("2-users", "20-req-s-poisson")]
    assert result.stdout.count("(×") == sum(all(each is not None and each.valid for each in pair) for pair in verdicts)


@pytest.mark.parametrize(("make", "says"), [
    (MODEL % "sys.exit(3)", "the model_command failed with exit code 3: see"),
    ('model_command = ["no-such-command"]', "cannot be run: 'no-such-command'"),
])
def test_a_model_that_cannot_be_made_starts_no_engine(tmp_path: Path, make: str, says: str) -> None:
    result = bench(tmp_path, make + TEXT + engine("one"))
    assert result.returncode == 2
    assert says in result.stderr
    assert not (tmp_path / "out" / "one").exists()


def test_a_model_of_its_own_is_not_verified(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    for wrong in (SUITE, TEXT.replace('"none"', '"smoke"')):
        path.write_text(MODEL % "" + wrong + engine("a"))
        with pytest.raises(UsageError, match="with a model_command there is no probe"):
            load_suite(str(path))


def test_wrong_tokens_are_no_success(tmp_path: Path) -> None:
    result = bench(tmp_path, SUITE + engine("liar", ', "--wrong-every", "3"'))
    assert result.returncode == 1, result.stderr
    assert "NOT every request answered rightly" in result.stdout


@pytest.mark.parametrize(("change", "says"), [
    (("rate_per_s = 20", "users = 2"), "loads must differ"),
    (('label = "b"', 'label = "A"'), "engine labels must differ"),
    (('label = "b"', 'label = "probe"'), "engine labels must differ"),
    (('label = "b"', 'label = "Model"'), "engine labels must differ"),
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


def test_a_suite_without_a_seed_takes_its_workloads(tmp_path: Path) -> None:
    text = (Path(str(data_dir("workloads"))) / "smoke.toml").read_text()
    (tmp_path / "own.toml").write_text("seed = 7\n" + text)
    path = tmp_path / "suite.toml"
    own = SUITE.replace('"smoke"\n\n', f'"{tmp_path / "own.toml"}"\n\n') + engine("a")
    for more, seed in (("", 7), ("seed = 3\n", 3)):
        path.write_text(more + own)
        assert load_suite(str(path)).first_seed == seed


def test_an_slo_is_every_loads_and_an_engine_may_have_a_profile_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text("slo = { ttft_ms = 100 }\n" + SUITE + engine("a") + engine("b") + 'profile = "ci"\n')
    suite = load_suite(str(path))
    assert [None if one.slo is None else one.slo.ttft_ms for one in suite.workloads()] == [100, 100]
    assert [suite.profile_of(one) for one in suite.engines] == ["none", "ci"]
    path.write_text(path.read_text().replace("\nprofile", '\nmodel_command = ["x"]\nprofile', 1))
    with pytest.raises(UsageError, match=r"with a model_command there is no probe.*'ci', 'none'"):
        load_suite(str(path))


def test_a_probe_that_sees_a_window_of_its_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.replace('"tiny"', '"window"') + engine("a"))
    with pytest.raises(UsageError, match="probe 'window' sees a window of its prompts alone"):
        load_suite(str(path))


def test_an_engine_that_was_interrupted_has_no_good_verdict() -> None:
    result = EngineResult("x", conformance=0)
    assert result.exit_code == 2
    assert "interrupted" in result.verdict
