"""Real engines serve the KV probe: conformance, then a load of which every token is verified.

Everything is asked through the same command that a user has: `pabench bench tests/real/real.toml`, and `pressure.toml`.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from pabench.analysis import load_run, summarise
from pabench.conformance import Outcome, Results, load_results
from pabench.conformance.runner import run_suite

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.real, pytest.mark.timeout(2400)]


def bench(name: str) -> Path:
    """The folder of one bench. It stays behind, with its report, to be looked at."""
    out = ROOT / "results" / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    suite = ROOT / "tests" / "real" / f"{name}.toml"
    subprocess.run([sys.executable, "-m", "pabench", "bench", str(suite), "--out", str(out)], cwd=ROOT, check=False)
    assert (out / "report.html").exists(), "the bench left no report"
    return out


@pytest.fixture(scope="module")
def roomy() -> Path:
    """One bench over engines that have room for all."""
    return bench("real")


@pytest.fixture(scope="module")
def small() -> Path:
    """One bench of vLLM with a pool so small that it preempts."""
    return bench("pressure") / "vllm-160-blocks"


def conformance(engine: Path) -> Results:
    return load_results(engine / "conformance" / "verdicts.jsonl")


@pytest.mark.parametrize("engine", ["vllm", "transformers-serve"])
def test_every_token_of_the_load_is_verified(roomy: Path, engine: str) -> None:
    summary = summarise(load_run(roomy / engine / "64-users"))
    assert summary.outcomes["ok"] == 128
    assert summary.wrong_tokens == 0
    assert summary.verified_tokens == summary.output_tokens


def test_vllm_fails_only_what_we_confirmed_by_hand(small: Path) -> None:
    """docs/findings.md tells how: a seed on a prompt of several steps ends it."""
    rows = conformance(small).rows
    failed = {(row.requirement, row.case) for row in rows
              if row.level == "MUST" and row.outcome not in (Outcome.PASS, Outcome.UNSUPPORTED)}
    assert failed <= {("http/chunk-boundary-exact", "with-a-seed")}
    passed = {row.requirement for row in rows if row.outcome is Outcome.PASS}
    assert {"http/ring-exact", "http/n-samples-isolated", "http/abort-frees", "http/no-starvation",
            "http/preemption-exact"} <= passed


def test_transformers_serve_fails_only_what_we_confirmed_by_hand(roomy: Path) -> None:
    """docs/findings.md tells how; what it leaves unfailed one day is no reason to fail here."""
    failed = {row.requirement for row in conformance(roomy / "transformers-serve").rows
              if row.outcome not in (Outcome.PASS, Outcome.UNSUPPORTED, Outcome.NOTRUN)}
    assert failed <= {"http/bad-input-then-healthy", "http/empty-prompt-then-healthy", "http/duplicate-request-ids"}


@pytest.mark.parametrize(("engine", "passed"), [("vllm", 18), ("transformers", 12)])
def test_their_block_managers_conform(
    engine: str, passed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the allocator level, in process: the manager alone, driven by traces."""
    monkeypatch.setenv(f"PABENCH_{engine.upper()}_PYTHON", str(ROOT / ".envs" / engine / "bin" / "python"))
    assert run_suite(impl=f"{engine}-blocks", out=tmp_path / "out", profile="smoke", quiet=True) == 0
    rows = load_results(tmp_path / "out").by_requirement()
    assert sum(row.outcome is Outcome.PASS for row in rows) == passed


def test_a_tiny_pool_shares_preempts_and_gives_back_at_once(small: Path) -> None:
    """Shared prompts, four samples of each request, and a quarter of the clients that leave."""
    summary = summarise(load_run(small / "24-users"))
    assert summary.outcomes["ok"] + summary.outcomes["aborted"] == 96
    assert summary.outcomes["aborted"] > 10
    assert summary.wrong_tokens == 0
    assert summary.verified_tokens > 20_000
    assert summary.preemptions is not None
    assert summary.preemptions > 50
    assert summary.kv_usage_max is not None
    assert summary.kv_usage_max > 0.9
    assert summary.prefix_hit_rate is not None
    assert summary.prefix_hit_rate > 0.3
    assert summary.effective_utilisation is not None
    assert summary.effective_utilisation > 1  # blocks are shared
