"""Adapters of the kernel level: the one that the docs show, and those that ship."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pabench.conformance import Outcome, load_results
from pabench.conformance.adapters import _module, make_adapter
from pabench.conformance.failure import CaseFailed
from pabench.conformance.kernel import layouts, under_test
from pabench.conformance.kernel.cases import AttendCase, CacheForm, MergeCase, WriteCase
from pabench.conformance.runner import replay_case, run_suite
from tests.conformance.mutant_hosts import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "kernel_adapter.py"
IDS = ("kernel/soft-cap", "kernel/block-boundary-lengths", "kernel/merge-equals-dense")


def suite_adapter(name: str) -> ModuleType:
    return _module(ROOT / "suites" / "adapters" / f"{name}.py")


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
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run_suite(impl=name, out=tmp_path / "out", profile="smoke") == 2
    assert "runs on an NVIDIA GPU" in capfd.readouterr().err


@pytest.mark.kernels
def test_flex_attention_equals_dense(tmp_path: Path) -> None:
    ids = ["kernel/alibi"]
    assert run_suite(impl="flex-attention", out=tmp_path / "out", profile="smoke", ids=ids, quiet=True) == 0
    assert set(verdicts(tmp_path / "out").values()) == {Outcome.PASS}


def test_a_row_that_sees_nothing_has_an_lse_of_minus_infinity() -> None:
    """Of FlashAttention 2 it comes as +inf, of FlashInfer as -5e4 in base 2; and goes to its merge as such."""
    flash, infer = suite_adapter("flash_attention"), suite_adapter("flashinfer")
    told = torch.tensor([[1.5, torch.inf], [-2.0, torch.inf]])  # [heads, tokens]
    assert flash.lse_by_row(told).tolist() == [[1.5, -2.0], [-torch.inf, -torch.inf]]

    told = torch.tensor([3.0, -5e4, -5e4 + math.log2(130), -400.0])
    expected = torch.tensor([3.0, -torch.inf, -torch.inf, -400.0]) * math.log(2)
    assert torch.equal(infer.lse_in_base_e(told), expected)
    assert torch.equal(infer.lse_in_base_2(expected), torch.tensor([3.0, -5e4, -5e4, -400.0]))


@pytest.mark.parametrize("empty", [(), (0,), (0, 1, 2)])
def test_what_flashinfer_merges_comes_back_in_base_e(empty: tuple[int, ...]) -> None:
    """Its merge, as its documentation has it: states in base 2 with a number for infinity."""
    def merge_states(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        most = lses.amax(1, keepdim=True)
        weights = (lses - most).exp2()
        total = weights.sum(1, keepdim=True)
        return ((weights / total)[..., None] * outs).sum(1), (most + total.log2())[:, 0]

    lses = torch.tensor([1.0, -3.0, 0.5]).reshape(3, 1, 1)
    outs = torch.ones(3, 1, 1, 64)
    for part in empty:
        lses[part], outs[part] = -torch.inf, 0.0
    adapter = SimpleNamespace(_library=SimpleNamespace(merge_states=merge_states))
    out, lse = suite_adapter("flashinfer").FlashInfer.merge(adapter, outs, lses)
    torch.testing.assert_close(lse, lses.logsumexp(0))
    assert out.unique().tolist() == [pytest.approx(0.0 if len(empty) == 3 else 1.0)]


PICKY = """
from pabench.conformance.adapters import _module, make_adapter

def paged():
    adapter, claims = make_adapter("paged-torch"), getattr(_module("{path}"), "{name}")
    adapter.capabilities = claims.capabilities
    adapter.unsupported = lambda case: claims.unsupported(adapter, case)
    return adapter
"""


@pytest.mark.parametrize(("file", "name", "lacks"), [
    ("flash_attention", "FlashAttention", set()), ("flashinfer", "FlashInfer", {"kernel/alibi"})])
def test_a_kernel_without_float32_or_small_blocks_is_asked_nearly_all(
    file: str, name: str, lacks: set[str], tmp_path: Path
) -> None:
    """What those adapters say that they take, of a kernel that runs here."""
    picky = tmp_path / "picky.py"
    picky.write_text(PICKY.format(path=ROOT / "suites" / "adapters" / f"{file}.py", name=name))
    ids = ["kernel/block-boundary-lengths", "kernel/group-map", "kernel/head-dims", "kernel/sliding-window",
           "kernel/soft-cap", "kernel/alibi", "kernel/empty-sequence", "kernel/every-row-written",
           "kernel/lse-correct", "kernel/split-invariant"]
    assert run_suite(impl=f"{picky}:paged", out=tmp_path / "out", profile="smoke", ids=ids, quiet=True) == 0
    assert {each for each, outcome in verdicts(tmp_path / "out").items() if outcome is not Outcome.PASS} == lacks


def test_flash_attention_gives_no_lse_with_alibi() -> None:
    adapter = suite_adapter("flash_attention").FlashAttention(lambda: None, "2")
    form = CacheForm(block_size=256, head_dim=64, value_dim=64, storage="float16")
    asked = AttendCase((5,), (1,), form=form, dtype="float16", alibi=True)
    assert adapter.unsupported(asked) == []
    assert adapter.unsupported(replace(asked, with_lse=True)) == [
        "flash_attn does not take ALiBi where the LSE is asked for"]


DYING = """
from pabench.conformance.kernel import under_test

waits = []

def wait_for(device):
    waits.append(1)
    if len(waits) > 3:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

under_test._wait_for = wait_for
"""


def test_a_device_that_died_is_a_crash_and_later_cases_are_not_run(tmp_path: Path) -> None:
    """As CUDA tells it: not in the call that broke it, but at each wait from then on."""
    dying, ids = tmp_path / "dying.py", ["kernel/block-boundary-lengths", "kernel/group-map", "kernel/head-dims"]
    dying.write_text(EXAMPLE.read_text() + DYING)
    assert run_suite(impl=f"{dying}:MyAdapter", out=tmp_path / "out", profile="smoke", ids=ids, quiet=True) == 1
    rows = load_results(tmp_path / "out").rows
    dead = next(i for i, row in enumerate(rows) if row.outcome is not Outcome.PASS)
    assert {row.outcome for row in rows[dead + 1:]} == {Outcome.NOTRUN}
    assert rows[dead].outcome is Outcome.CRASH
    assert "the device cpu takes no more work: CUDA error: an illegal memory access" in rows[dead].text
    assert "AttendCase(context_lens" in rows[dead].text
    assert json.loads((tmp_path / "out" / rows[dead].replay).read_text())["drawn"]["case"]["operation"] == "attend"


def test_an_error_that_the_device_survives_is_the_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes up at the first wait behind the call, within it."""
    waits = []

    def wait_for(_device: str) -> None:
        waits.append(1)
        if len(waits) == 1:
            raise RuntimeError("CUDA error: invalid configuration argument")

    monkeypatch.setattr(under_test, "_wait_for", wait_for)
    kernel = under_test.KernelUnderTest(make_adapter("paged-torch"), None, None, None)  # type: ignore[arg-type]
    with pytest.raises(CaseFailed, match="merge raised RuntimeError: CUDA error: invalid conf"):
        kernel.merge(torch.zeros(2, 1, 1, 16), torch.zeros(2, 1, 1))
    kernel.merge(torch.zeros(2, 1, 1, 16), torch.zeros(2, 1, 1))


def test_a_far_cache_has_room_before_it_on_any_device() -> None:
    for device in ("cpu", "meta"):
        for room in (2**31, 2**32):
            placed = layouts._place((4, 2, 1, 8), torch.float16, "far", device, "nan", room)
            assert placed.view.storage_offset() == room
            assert placed.base.numel() == room + 4 * 2 * 8


def test_what_takes_memory_on_a_device_is_not_asked_there() -> None:
    kernel = under_test.KernelUnderTest(make_adapter("paged-torch"), None, None, None)  # type: ignore[arg-type]
    farther = WriteCase((0,), form=CacheForm(layout="far", far_elements=2**32))
    assert kernel._reasons(farther) == []
    kernel.device = "cuda"
    assert kernel._reasons(farther) == ["2^32 elements before a cache take no memory on the CPU alone"]
    assert kernel._reasons(WriteCase((0,), form=CacheForm(layout="far"))) == []


def test_flashinfer_merges_what_its_kernels_are_built_for() -> None:
    adapter = suite_adapter("flashinfer").FlashInfer
    flashinfer = adapter.__new__(adapter)  # its workspace would need a GPU
    assert flashinfer.unsupported(MergeCase(dim=128, dtype="bfloat16")) == []
    assert flashinfer.unsupported(MergeCase(dim=16, dtype="float32")) == [
        "flashinfer does not merge parts in float32", "flashinfer does not merge parts of head dim 16"]
