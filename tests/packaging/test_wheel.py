"""The built wheel: what it installs, and what works of it in an empty environment without torch.

Run by `make test-wheel`: pip fetches what the wheel requires.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pabench.engines import EngineProcess

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def empty_env(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands of an environment that holds the wheel and what it requires, and nothing else."""
    env = tmp_path_factory.mktemp("env")
    venv.create(env)  # without pip, and nothing is compiled that is not imported: half of the time
    subprocess.run([sys.executable, "-m", "pip", "--python", env / "bin" / "python", "install", "--quiet",
                    "--no-compile", "-c", ROOT / "constraints.txt", wheel], check=True, capture_output=True)
    return env / "bin"


@pytest.fixture(scope="module")
def stub(empty_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [str(empty_env / "pabench"), "stub", "--ttft-ms", "5", "--itl-ms", "1", "--port", "{port}"]
    log = tmp_path_factory.mktemp("stub") / "stub.log"
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=log, env=clean_environment()) as process:
        yield process.url


def clean_environment() -> dict[str, str]:
    """Without whatever would let the checkout leak into the environment under test."""
    return {key: "" if key == "PYTHONPATH" else value for key, value in os.environ.items()}


def pabench(empty_env: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([empty_env / "pabench", *map(str, arguments)], cwd=cwd, env=clean_environment(),
                          capture_output=True, text=True, timeout=180)


def test_nothing_else_lands_at_top_level(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pabench", "reference_engine", "paged_kernels"}
    for needed in ("pabench/suites/requirements.toml", "pabench/suites/bugs.toml", "pabench/suites/bench/demo.toml",
                   "pabench/suites/gate.toml", "pabench/suites/claims/claims.toml", "pabench/suites/claims/memory.py",
                   "pabench/workloads/sharegpt-mini.toml", "pabench/report/template.html.j2"):
        assert needed in names
    assert not [name for name in names if re.search(r"(__pycache__|\.pyc$|^tests/)", name)]


def test_every_promised_command_works_without_torch(empty_env: Path, stub: str, tmp_path: Path) -> None:
    missing = subprocess.run([empty_env / "python", "-c", "import torch"], capture_output=True)
    assert missing.returncode != 0, "this environment is not empty"

    helped = pabench(empty_env, "--help", cwd=tmp_path)
    assert helped.returncode == 0
    for command in ("probe", "serve", "simulate", "stub", "doctor", "conform", "replay", "mutants", "matrix", "run",
                    "report", "bench", "gate", "compare", "results", "history", "claims", "calibrate"):
        assert command in helped.stdout

    built = pabench(empty_env, "probe", "build", "--preset", "tiny", "--out", "probe", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert pabench(empty_env, "probe", "check", "probe", cwd=tmp_path).returncode == 0

    found = pabench(empty_env, "doctor", "--url", stub, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["probe"] is not None

    ran = pabench(empty_env, "run", "--url", stub, "--workload", "smoke", "--out", "run", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)[0]["wrong_tokens"] == 0

    conformed = pabench(empty_env, "conform", "--url", stub, "--profile", "smoke", "--out", "conform",
                        "--id", "http/ring-exact", cwd=tmp_path)
    assert conformed.returncode == 0, conformed.stdout + conformed.stderr
    assert (tmp_path / "conform" / "verdicts.jsonl").exists()

    reported = pabench(empty_env, "report", "run", "conform", "--out", "report.html", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "http/ring-exact" in (tmp_path / "report.html").read_text()

    set_beside = pabench(empty_env, "matrix", "conform", "--out", "matrix.html", cwd=tmp_path)
    assert set_beside.returncode == 0, set_beside.stderr
    assert "http/ring-exact" in (tmp_path / "matrix.html").read_text()

    judged = pabench(empty_env, "gate", "--baseline", "run", "--candidate", "run", "--json", cwd=tmp_path)
    assert judged.returncode in (2, 3), judged.stderr  # one run tells nothing; on a busy machine it is INVALID
    for command in (("results", "list", "run"), ("results", "export", "run", "--format", "vllm"), ("history", "run")):
        assert pabench(empty_env, *command, cwd=tmp_path).returncode == 0, command

    for command in (("serve", "--model", "probe"), ("simulate", "--synthetic", "exp:9", "exp:9", "--limit", "5"),
                    ("mutants",), ("claims",)):
        refused = pabench(empty_env, *command, cwd=tmp_path)
        assert refused.returncode == 2
        assert "pabench[engine]" in refused.stderr


def test_the_wheel_serves_where_torch_is(wheel: Path, tiny_probe: Path, tmp_path: Path) -> None:
    """The wheel's own files, with the libraries of the environment that runs the tests."""
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    command = [sys.executable, "-P", "-m", "pabench", "serve", "--model", str(tiny_probe), "--port", "{port}"]
    with EngineProcess(command, url="http://127.0.0.1:{port}", log=tmp_path / "serve.log",
                       env={"PYTHONPATH": str(site)}) as process:
        assert process.alive
