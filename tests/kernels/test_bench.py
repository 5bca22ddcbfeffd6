"""The kernels' benchmark, in Triton's interpreter: everything but the times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paged_kernels import plan_attention
from paged_kernels.bench import __main__ as command
from paged_kernels.bench.exact import fault
from paged_kernels.bench.record import Record, Row
from paged_kernels.bench.shapes import Shape, shapes
from paged_kernels.bench.subjects import IN_A_ROW, OURS, contiguous, draw, make
from paged_kernels.bench.timing import copies_beyond_cache, milliseconds
from paged_kernels.triton_backend.device import interpreted

SHAPE = Shape("tiny", 3, 40, 5, 4, 2, 32, 8, "float32")
ROOT = Path(__file__).resolve().parents[2]


def bench(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "paged_kernels.bench", "--shapes", "smoke", "--out", str(out)], capture_output=True,
        text=True, timeout=300, env={**os.environ, "PYTHONPATH": path, **environment})


def test_in_the_interpreter_all_is_right_and_no_time_is_claimed(tmp_path: Path) -> None:
    done = bench(tmp_path / "sub" / "kernels.json", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "sub" / "kernels.json").read_text())
    ours = [row for row in told["rows"] if row["subject"] == OURS]
    assert [row["failure"] for row in ours] == [""] * len(list(shapes("smoke")))
    assert {row["timed"] for row in ours} == {"interpreter"}
    assert told["read_bandwidth"] is None
    assert "times mean nothing here" in done.stdout
    assert "GB/s" in done.stdout.splitlines()[4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = bench(tmp_path / "kernels.json", TRITON_INTERPRET="0")
    assert done.returncode == 2
    assert "torch sees no GPU: run this on one, or with TRITON_INTERPRET=1" in done.stderr
    assert not (tmp_path / "kernels.json").exists()


def test_a_wrong_result_is_seen() -> None:
    data = draw(SHAPE, 1, torch.device("cpu"))
    plan = plan_attention(data.block_tables, data.contexts, data.query_start_loc, SHAPE.block_size)
    out = plan.attend(data.query, data.caches[0], scale=data.scale)
    assert fault(data, out) == ""
    for change in (lambda wrong: wrong[4, 1, 0].add_(1e-4), lambda wrong: wrong[9].fill_(torch.nan)):
        change(wrong := out.clone())
        assert "off by" in fault(data, wrong)
    assert "shape" in fault(data, out[:2])


def test_at_a_long_context_zeros_and_a_lost_split_are_seen() -> None:
    """In bfloat16, where the result is far smaller than one rounding of the values."""
    shape = Shape("tiny", 1, 16384, 1, 8, 1, 64, 16, "bfloat16")
    data = draw(shape, 1, torch.device("cpu"))
    plan = plan_attention(data.block_tables, data.contexts, data.query_start_loc, shape.block_size)
    out = plan.attend(data.query, data.caches[0], scale=data.scale)
    assert fault(data, out) == ""
    assert "off by" in fault(data, torch.zeros_like(out))
    for lost in (0, 31, 63):
        blocks = torch.cat([data.block_tables[:, : lost * 16], data.block_tables[:, (lost + 1) * 16:]], 1)
        rest = plan_attention(blocks, data.contexts - 256, data.query_start_loc, shape.block_size)
        assert "off by" in fault(data, rest.attend(data.query, data.caches[0], scale=data.scale)), lost


def test_a_chunk_is_checked_at_its_begin_too() -> None:
    data = draw(shape := Shape("tiny", 1, 300, 200, 4, 2, 32, 8, "float32"), 1, torch.device("cpu"))
    plan = plan_attention(data.block_tables, data.contexts, data.query_start_loc, shape.block_size)
    out = plan.attend(data.query, data.caches[0], scale=data.scale)
    assert fault(data, out) == ""
    out[:2] = 0
    assert "sequence 0, row 0" in fault(data, out)


def test_needles_decide_their_rows() -> None:
    """A head of a group for each of the four positions; the others are random."""
    shape = Shape("tiny", 1, 2500, 1, 8, 1, 64, 16, "bfloat16")
    data = draw(shape, 1, torch.device("cpu"))
    key, _ = contiguous(data, data.caches[0])
    weights = (data.query[0].float() @ key[0, 0].float().T * data.scale).softmax(-1)
    assert weights[:4].argmax(-1).tolist() == [2048, 2499, 2047, 0]
    assert weights[:4].amax(-1).min() > 0.9
    assert weights[4:].amax() < 0.1


def test_a_batch_in_a_row_is_the_same_batch() -> None:
    data = draw(SHAPE, 1, torch.device("cpu"))
    key, value = contiguous(data, data.caches[0])
    assert key.shape == value.shape == (3, 2, 40, 32)
    block = data.block_tables[1, 2]
    assert torch.equal(key[1, :, 16:24], data.caches[0].key[block].transpose(0, 1))


def test_floors() -> None:
    shape = Shape("Llama-8B", 32, 4096, 1, 32, 8, 128, 16, "bfloat16")
    assert shape.kv_bytes == 32 * 4096 * 8 * 128 * 2 * 2
    assert shape.moved_bytes == shape.kv_bytes + 2 * 32 * 32 * 128 * 2
    assert shape.flops == 4 * 32 * 32 * 128 * 4096
    whole = Shape("x", 1, 4, 4, 1, 1, 8, 16, "bfloat16")
    assert whole.flops == 4 * 8 * (1 + 2 + 3 + 4)
    assert Shape("x", 1, 4, 4, 1, 1, 8, 16, "float8_e4m3fn").query_dtype is torch.bfloat16
    assert len(set(map(str, shapes("full")))) == len(list(shapes("full"))) > 100


def test_the_table_on_a_device() -> None:
    shape = Shape("Llama-8B", 32, 4096, 1, 32, 8, 128, 16, "bfloat16")
    rows = [Row(OURS, shape, [0.20, 0.20, 0.21], "graph"), Row("flashinfer", shape, [0.22] * 3, "graph"),
            Row("flash_attn", shape, failure="NotImplementedError: blocks | of 16"),
            Row("sdpa", shape, [0.30], "eager"), Row(IN_A_ROW, shape, [0.16] * 3, "graph")]
    environment = {"device": "GPU", "torch": "2", "triton": "3"}
    record = Record(environment, 4e12, {"x": "ImportError"}, rows, {"large": "it needs 200 GiB, 70 are free"})
    line = next(line for line in record.table().splitlines() if line.startswith("| Llama-8B"))
    assert line == ("| Llama-8B decode, batch 32 x 4096, block 16, bfloat16 | 0.200 | 5% | 2687 | 67% | 10.7 | 1.10 | "
                    "NotImplementedError: blocks / of 16 | 1.50 (eager) | 1.25 |")
    assert record.table().splitlines()[2].endswith(" sdpa / ours | ours / ours, one block a sequence |")
    assert "a streaming read reaches 4000 GB/s." in record.table()
    record.read_bandwidth_afterwards = 3.9e12
    assert "a streaming read reaches 4000 GB/s, afterwards 3900 GB/s." in record.table()
    rows[0].cold = False
    assert "| 5% | 2687 | – | 10.7 |" in record.table(), "a share of the bandwidth, out of the cache"
    assert "- left out: large (it needs 200 GiB, 70 are free)" in record.table()


def test_copies_together_are_four_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 << 20))
    cuda = torch.device("cuda")
    assert [copies_beyond_cache(mib << 20, cuda) for mib in (1, 16, 300)] == [200, 13, 1]
    assert copies_beyond_cache(64 << 10, cuda) == 256
    assert copies_beyond_cache(1, torch.device("cpu")) == 1


class FakeGPU:
    """What `milliseconds` asks of torch.cuda, told in the order of asking."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, capture_fails: bool) -> None:
        self.told: list[str] = []
        self.stream = "the default"
        event = SimpleNamespace(record=lambda: self.told.append("event"), synchronize=lambda: None,
                                elapsed_time=lambda _end: 6.0)

        @contextmanager
        def graph(_graph: object) -> object:
            self.stream = "the capture's"
            yield
            if capture_fails:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.stream = "the default"

        for name, fake in {
            "synchronize": lambda: None, "current_stream": lambda: self.stream, "graph": graph,
            "set_stream": lambda stream: setattr(self, "stream", stream), "Event": lambda enable_timing: event,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.told.append("replay")),
            "_sleep": lambda cycles: self.told.append(f"sleep {cycles}"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr("paged_kernels.bench.timing.interpreted", lambda: False)


def test_launches_are_queued_behind_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch, capture_fails=False)
    took, timed = milliseconds(lambda i: None, 3)
    assert (took, timed) == ([2.0] * 20, "graph")
    assert gpu.told == ["replay", *["sleep 2000000", "event", "replay", "event"] * 20]


def test_what_cannot_be_captured_is_timed_on_the_stream_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch, capture_fails=True)
    streams = []
    _, timed = milliseconds(lambda i: streams.append(gpu.stream), 3)
    assert timed == "eager"
    assert streams == ["the default"] * 9 + ["the capture's"] * 3 + ["the default"] * 63
    assert gpu.told[:2] == ["sleep 600000", "event"]


def test_flash_attention_has_a_shape() -> None:
    asked = [shape for shape in shapes("full") if shape.block_size % 256 == 0]
    assert list(map(str, asked)) == ["Llama-8B decode, batch 32 x 4096, block 256, bfloat16"]


def test_what_compiles_for_each_shape_is_timed_on_a_few_only() -> None:
    for context, block_size in ((128, 16), (8192, 128)):
        shape = Shape("Llama-8B", 1, context, 1, 32, 8, 8, block_size, "bfloat16")
        for name in ("flex_attention, contiguous", IN_A_ROW):
            with pytest.raises(NotImplementedError, match="a few shapes only"):
                make(name, draw(shape, 1, torch.device("cpu")))


@pytest.mark.skipif(not interpreted(), reason="small, for the interpreter")
@pytest.mark.parametrize("storage", ["float32", "float8_e4m3fn"])
def test_one_block_a_sequence_holds_the_same(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    """The same numbers in another place, through a table that names each sequence's one block."""
    data = draw(replace(SHAPE, rows=1, storage=storage), 1, torch.device("cpu"))
    planned = []
    monkeypatch.setattr("paged_kernels.bench.subjects.plan_attention",
                        lambda *args, **named: planned.append(args) or plan_attention(*args, **named))
    assert torch.equal(make(IN_A_ROW, data)(0), make(OURS, data)(0))
    assert planned[0][0].tolist() == [[0], [1], [2]]
    assert (planned[0][3], planned[1][3]) == (128, SHAPE.block_size)


def test_a_subject_is_gone_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call may hold all data a second time, for which a large shape has no room."""
    calls: list[weakref.ref[object]] = []

    def fake(_name: str, _data: object) -> object:
        assert all(before() is None for before in calls)
        def call(_copy: int) -> None:
            pass

        calls.append(weakref.ref(call))
        return call

    monkeypatch.setattr(command, "make", fake)
    monkeypatch.setattr(command, "fault", lambda _data, _out: "")
    rows = command._measured(SHAPE, ["a", "b", "c"], torch.device("cpu"))
    assert [row.failure for row in rows] == [""] * 3


def test_what_torch_keeps_for_later_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 << 20))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.__setitem__(0, 64 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 140 << 30))
    assert command._too_large(SHAPE, torch.device("cuda")) == ""
