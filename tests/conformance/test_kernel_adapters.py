"""Adapters of the kernel level: the one that the docs show, and those that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.conformance import Outcome, load_results
from pabench.conformance.runner import replay_case, run_suite
from tests.conformance.mutant_hosts import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "kernel_adapter.py"
IDS = ("kernel/soft-cap", "kernel/block-boundary-lengths", "kernel/merge-equals-dense")


def verdicts(out: Path) -> dict[str, Outcome]:
    return {row.requirement: row.outcome for row in load_results(out).by_requirement()}


def test_the_adapter_in_the_docs_conforms_in_under_40_lines(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40
    assert run_suite(impl=f"{EXAMPLE}:MyAdapter", out=tmp_path / "out", profile="smoke", ids=IDS, quiet=True) == 0
    assert verdicts(tmp_path / "out") == {
        "kernel/soft-cap": Outcome.UNSUPPORTED, "kernel/block-boundary-lengths": Outcome.PASS,
        "kernel/merge-equals-dense": Outcome.UNSUPPORTED,
    }


def test_a_failure_is_explained_and_asked_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(EXAMPLE.read_text().replace("context_len - len(query) + 1)", "context_len - len(query))"))
    ids = ["kernel/block-boundary-lengths"]
    assert run_suite(impl=f"{broken}:MyAdapter", out=tmp_path / "out", profile="smoke", ids=ids, quiet=True) == 1
    row = next(row for row in load_results(tmp_path / "out").rows if row.outcome is Outcome.FAIL)
    assert [line.split()[0] for line in row.text.splitlines()[2:5]] == ["case", "expected", "actual"]
    assert "AttendCase(context_lens" in row.text
    capfd.readouterr()
    assert replay_case(tmp_path / "out" / row.replay, impl=f"{broken}:MyAdapter") == 1
    assert row.text.splitlines()[3] in capfd.readouterr().out
    assert replay_case(tmp_path / "out" / row.replay, impl=f"{EXAMPLE}:MyAdapter") == 0


@pytest.mark.parametrize("name", ["flashinfer", "flash-attention"])
def test_what_needs_a_gpu_says_so(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run_suite(impl=name, out=tmp_path / "out", profile="smoke") == 2
    assert "runs on an NVIDIA GPU" in capfd.readouterr().err


def test_flex_attention_equals_dense(tmp_path: Path) -> None:
    ids = ["kernel/alibi"]
    assert run_suite(impl="flex-attention", out=tmp_path / "out", profile="smoke", ids=ids, quiet=True) == 0
    assert set(verdicts(tmp_path / "out").values()) == {Outcome.PASS}
