"""What the Triton backend adds to what the conformance suite asks of every backend."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.utils._python_dispatch
from paged_kernels import AttentionPlan, KVCache, copy_blocks, merge_states, plan_attention, write_kv
from paged_kernels.triton_backend import device, launch
from paged_kernels.triton_backend.device import interpreted
from paged_kernels.triton_backend.plan import Capacity, TritonPlan
from paged_kernels.triton_backend.schedule import ITEM, Batch, schedule
from paged_kernels.triton_backend.tiles import Geometry, tile_for
from triton.runtime import interpreter

from pabench.conformance.kernel.layouts import _sparse

DEVICE = "cpu" if interpreted() else "cuda"
ROWS = 3
LENS = [(40, 700, 0), (1300, 257, 5), (1, 0, 256), (0, 0, 0)]  # below, at and above the split of 256 positions


@pytest.mark.parametrize("window", [None, 270])
@pytest.mark.parametrize("programs", [1, 4])
def test_a_refilled_plan_is_a_new_one(programs, window):
    """Fixed buffers and grids, however many work items and parts the batch before had."""
    block_size, width = 16, 90
    rng = torch.Generator().manual_seed(1)
    cache = KVCache(*(torch.randn(ROWS * width, block_size, 1, 16, generator=rng).to(DEVICE) for _ in range(2)))
    query = torch.randn(ROWS, 2, 16, generator=rng).to(DEVICE)
    starts = torch.arange(ROWS + 1)
    kept = None
    for lens in LENS:
        tables = torch.randperm(ROWS * width, generator=rng).view(ROWS, width).to(DEVICE)
        contexts = torch.tensor(lens)
        if kept is None:
            room = Capacity(ROWS, width * block_size, programs)
            plan = TritonPlan(tables, contexts, starts, block_size, capacity=room)
            kept = AttentionPlan(plan, "triton")
        else:
            plan.refill(tables, contexts)
        new = plan_attention(tables, contexts, starts, block_size, backend="triton")
        for ours, theirs in zip(kept.attend_with_lse(query, cache, scale=0.3, window=window),
                                new.attend_with_lse(query, cache, scale=0.3, window=window), strict=True):
            assert torch.equal(ours, theirs), lens


@pytest.mark.parametrize(("contexts", "rows", "window", "dead"), [
    ((600, 100), (1, 1), 64, (4, 0)),  # the first no longer sees its prefix
    ((100, 600), (1, 1), 64, (0, 4)),
    ((80, 100), (0, 3), None, (4, 0)),  # the first has no rows, so nothing of its table is read
    ((600, 300, 130), (40, 200, 5), 100, (4, 0, 1)),  # the third is the shortest, but the second has earlier rows
])
def test_a_shared_prefix_is_read_where_its_entries_are_live(contexts, rows, window, dead):
    block_size, width, shared = 16, 40, 4
    rng = torch.Generator().manual_seed(6)
    blocks = len(contexts) * width + 1
    cache = KVCache(*(torch.randn(blocks, block_size, 1, 16, generator=rng).to(DEVICE) for _ in range(2)))
    cache.key[-1], cache.value[-1] = math.nan, math.nan
    tables = torch.randperm(blocks - 1, generator=rng).view(-1, width).to(DEVICE)
    tables[:, :shared] = tables[0, :shared]
    for seq, entries in enumerate(dead):
        tables[seq, :entries] = blocks - 1
    query = torch.randn(sum(rows), 2, 16, generator=rng).to(DEVICE)
    starts = torch.tensor([0, *rows]).cumsum(0)
    ours, theirs = (
        plan_attention(tables, torch.tensor(contexts), starts, block_size, backend=backend, shared_prefix_len=prefix)
        .attend(query, cache, scale=0.3, window=window)
        for backend, prefix in (("triton", shared * block_size), ("torch", 0)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("triton", "numpy", "counts"), [
    ("3.6.0", "2.3.5", True), ("3.6.0", "2.4.6", False), ("3.6.0", "2.10.0", False), ("3.7.1", "2.5.0rc1", True),
    ("3.10.0+git1", "2.4.6", True),
])
@pytest.mark.skipif(not interpreted(), reason="a GPU counts")
def test_an_interpreter_that_cannot_count_says_so(monkeypatch, triton, numpy, counts):
    monkeypatch.setattr(device.triton, "__version__", triton)
    monkeypatch.setattr(device.np, "__version__", numpy)
    refused = pytest.raises(ValueError, match=r"take Triton 3\.7 or newer")
    with contextlib.nullcontext() if counts else refused:
        device.check_device(torch.device("cpu"))


@pytest.mark.skipif(not (interpreted() and hasattr(interpreter, "_LangPatchScope")),
                    reason="a GPU has no interpreter, and an older one never takes its changes back")
def test_the_interpreter_adapts_the_language_once_a_launch(monkeypatch):
    """And not at each device function that a kernel calls; afterwards the language is as it was."""
    adapted = []
    original = interpreter._patch_builtin
    monkeypatch.setattr(interpreter, "_patch_builtin", lambda *args: (adapted.append(args[0]), original(*args)))
    outs, lses = torch.randn(2, 3, 2, 16), torch.randn(2, 3, 2)
    for _ in range(2):
        adapted.clear()
        merge_states(outs, lses, backend="triton")
        assert interpreter.tl.core.is_builtin(interpreter.tl.load)
    assert sum(each is interpreter.tl.tensor for each in adapted) == 1


def test_a_plan_without_a_capacity_is_not_refilled():
    plan = TritonPlan(torch.zeros(1, 1, device=DEVICE), torch.ones(1, dtype=torch.int64), torch.arange(2), 16)
    with pytest.raises(ValueError, match="only a plan with a capacity"):
        plan.refill(torch.zeros(1, 1), torch.ones(1, dtype=torch.int64))


@pytest.mark.parametrize("scale", [(), (2,), (6, 8, 2)], ids=["tensor", "head", "slot"])
def test_fp8_is_read_alike_as_a_type_and_as_bytes(monkeypatch, scale):
    """By targets that have the type and by those that have not. Written as bytes: the interpreter's own conversion
    loses the carry of a mantissa that rounds up to the next power of 2. Alike to float32's rounding, not to the bit:
    the tiles lie differently in memory, and some CPUs' matrix products then add in another order."""
    rng = torch.Generator().manual_seed(2)
    stored = torch.zeros(6, 8, 2, 24, device=DEVICE).to(torch.float8_e4m3fn)
    cache = KVCache(stored, stored.clone(), *(torch.full(scale, 0.05, device=DEVICE) for _ in range(2)))
    key, value = torch.randn(2, 20, 2, 24, generator=rng).to(DEVICE)
    write_kv(key, value, cache, torch.arange(20, device=DEVICE) + 8, backend="triton")
    query = torch.randn(2, 4, 24, generator=rng).to(DEVICE)
    plan = plan_attention(torch.tensor([[1, 2, 3]], device=DEVICE), torch.tensor([20]), torch.tensor([0, 2]), 8,
                          backend="triton")
    as_bytes = plan.attend(query, cache, scale=0.2)
    monkeypatch.setattr(launch, "reads_fp8", lambda _device: True)
    torch.testing.assert_close(plan.attend(query, cache, scale=0.2), as_bytes, atol=2e-6, rtol=0.0)


@pytest.mark.parametrize(("query", "kv_heads", "message"), [
    (torch.zeros(1, 2, 16, dtype=torch.float64), 1, "float32, float16 or bfloat16, got torch.float64"),
    (torch.zeros(1, 129, 16), 1, "129 query heads a KV head"),
    (torch.zeros(1, 3, 16), 2, "a multiple of 2 heads"),
    (torch.zeros(2, 2, 16), 1, r"expected \[1, "),
    (torch.zeros(1, 16, 2).transpose(1, 2), 1, "last dim of query, key and value must be contiguous"),
])
def test_what_the_backend_cannot_do_is_refused(query, kv_heads, message):
    cache = KVCache(*(torch.zeros(1, 4, kv_heads, 16, dtype=query.dtype, device=DEVICE) for _ in range(2)))
    plan = plan_attention(torch.zeros(1, 1, device=DEVICE), torch.ones(1), torch.arange(2), 4, backend="triton")
    with pytest.raises(ValueError, match=message):
        plan.attend(query.to(DEVICE), cache, scale=1.0)


@pytest.mark.parametrize(("target", "group", "refused"), [("amd", 71, True), ("amd", 64, False), ("nvidia", 71, False)])
def test_queries_that_no_amd_gpu_holds_are_refused(monkeypatch, target, group, refused):
    """The launch would fail, in words of its own."""
    monkeypatch.setattr(launch, "target_of", lambda _device: target)
    cache = KVCache(*(torch.zeros(1, 4, 1, 256) for _ in range(2)))
    told = pytest.raises(ValueError, match=r"71 query heads of 256 .* take 128 KiB of shared memory, an AMD GPU has 64")
    with told if refused else contextlib.nullcontext():
        launch.geometry_of(torch.zeros(1, group, 256), cache, 1)


def test_a_backend_that_is_not_known_moves_nothing():
    cache = KVCache(*(torch.zeros(2, 4, 1, 8) for _ in range(2)))
    new = torch.ones(1, 1, 8)
    for move in (lambda: write_kv(new, new, cache, torch.tensor([0]), backend="numba"),
                 lambda: copy_blocks(cache.key[None], cache.value[None], torch.tensor([[0, 1]]), backend="cuda"),
                 lambda: merge_states(torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1), backend="numba")):
        with pytest.raises(ValueError, match="unknown backend"):
            move()
    assert not cache.key.any()


def test_fp8_blocks_are_copied_by_torch_as_bytes():
    """Torch has no indexed copy of fp8 on every device."""
    seen = []
    blocks = torch.arange(48).view(1, 3, 16).to(torch.uint8).view(torch.float8_e4m3fn)

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend(x.dtype for x in args if isinstance(x, torch.Tensor) and "index" in str(func))
            return func(*args, **(kwargs or {}))

    with Watched():
        copy_blocks(blocks, blocks, torch.tensor([[0, 2]]))
    assert torch.equal(blocks.view(torch.uint8)[0, 2], torch.arange(16).to(torch.uint8))
    assert set(seen) == {torch.uint8}


def test_a_plan_tells_where_it_runs():
    plan = plan_attention(torch.zeros(1, 1, device=DEVICE), torch.ones(1), torch.arange(2), 16, backend="triton")
    assert plan.describe().startswith("1 sequences in triton on ")


def _headed_far(dim):
    """[2 blocks, 4 slots, 3 heads, dim] float16 zeros, heads outermost and 2^30 elements apart.

    Room for as much before it: an address that wraps around in 32 bits is not the cache's, but the process's.
    """
    base = _sparse(2**32 + 2 * 4 * dim, torch.float16)
    return base.as_strided((2, 4, 3, dim), (4 * dim, dim, 2**30, 1), 2**31)


@pytest.mark.skipif(DEVICE != "cpu", reason="memory that takes no room until it is touched")
def test_heads_far_apart_are_written_and_read():
    """Head 2 lies 2^31 elements from the first: head times stride needs 64 bits."""
    rng = torch.Generator().manual_seed(3)
    cache, near = KVCache(_headed_far(16), _headed_far(16)), KVCache(*torch.zeros(2, 2, 4, 3, 16).half())
    key, value = torch.randn(2, 8, 3, 16, generator=rng).half()
    for where in (cache, near):
        write_kv(key, value, where, torch.arange(8), backend="triton")
    assert torch.equal(cache.key.reshape(8, 3, 16), key)
    query = torch.randn(1, 3, 16, generator=rng).half()
    plan = plan_attention(torch.tensor([[1, 0]]), torch.tensor([7]), torch.arange(2), 4, backend="triton")
    assert torch.equal(plan.attend(query, cache, scale=0.25), plan.attend(query, near, scale=0.25))


def _apart(*sizes, dim, dtype=torch.float16):
    """Zeros of `sizes`, the dim given 2^30 elements apart, the others without gaps behind one another; see _headed_far.
    """
    near = [size for at, size in enumerate(sizes) if at != dim]
    strides = [math.prod(near[at + 1 :]) for at in range(len(near))]
    strides.insert(dim, 2**30)
    base = _sparse(2**31 + (sizes[dim] - 1) * 2**30 + math.prod(near), dtype)
    return base.as_strided(sizes, strides, 2**31)


@pytest.mark.skipif(DEVICE != "cpu", reason="memory that takes no room until it is touched")
@pytest.mark.parametrize("block_size", [4, 64], ids=["gathered", "one-block"])
@pytest.mark.parametrize("scaled", [False, True], ids=["exact", "scaled"])
def test_slots_far_apart_are_read(block_size, scaled):
    """Slot 2 lies 2^31 elements from the first of its block: slot times stride needs 64 bits, of scales too."""
    rng = torch.Generator().manual_seed(4)
    sizes, storage = (2, block_size, 1), torch.int8 if scaled else torch.float16
    near = KVCache(*(torch.randint(-9, 9, (*sizes, 16), generator=rng).to(storage) for _ in range(2)),
                   *(torch.rand(sizes, generator=rng) for _ in range(2 * scaled)))
    far = KVCache(*(_apart(*x.shape, dim=1, dtype=x.dtype) for x in near if x is not None))
    for there, here in zip(far, near, strict=True):
        if here is not None:
            there[:, :4] = here[:, :4]
    query = torch.randn(1, 2, 16, generator=rng).half()
    plan = plan_attention(torch.tensor([[1, 0]]), torch.tensor([4]), torch.arange(2), block_size, backend="triton")
    assert torch.equal(plan.attend(query, far, scale=0.25), plan.attend(query, near, scale=0.25))


@pytest.mark.skipif(DEVICE != "cpu", reason="memory that takes no room until it is touched")
def test_query_heads_far_apart_are_read():
    """Head 2 lies 2^31 elements from the first."""
    rng = torch.Generator().manual_seed(5)
    cache = KVCache(*torch.randn(2, 2, 4, 1, 16, generator=rng).half())
    query, far = torch.randn(1, 3, 16, generator=rng).half(), _apart(1, 3, 16, dim=1)
    far.copy_(query)
    plan = plan_attention(torch.tensor([[1, 0]]), torch.tensor([7]), torch.arange(2), 4, backend="triton")
    assert torch.equal(plan.attend(far, cache, scale=0.25), plan.attend(query, cache, scale=0.25))


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """Triton launches on the current one, whatever the tensors say."""
    current = []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.append(None)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    cache = KVCache(*(torch.zeros(3, 4, 1, 8, device=DEVICE) for _ in range(2)))
    new = torch.ones(1, 1, 8, device=DEVICE)
    plan = plan_attention(torch.zeros(1, 1, device=DEVICE), torch.ones(1), torch.arange(2), 4, backend="triton")
    for move in (lambda: write_kv(new, new, cache, torch.tensor([0], device=DEVICE), backend="triton"),
                 lambda: copy_blocks(cache.key[None], cache.value[None], torch.tensor([[0, 1]]), backend="triton"),
                 lambda: merge_states(new[None], torch.zeros(1, 1, 1, device=DEVICE), backend="triton"),
                 lambda: plan.attend(new, cache, scale=1.0)):
        current.clear()
        move()
        assert current == [new.device, None]


def test_the_width_of_tables_makes_no_variants():
    """It follows the longest context of a batch: 16 whole, 1 or neither, each would be compiled while serving."""
    code = ("from paged_kernels.triton_backend.attend import attend_kernel as kernel;"
            "print([p.name for p in kernel.params if p.do_not_specialize])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
                          env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.strip() == "['stride_table']"


@pytest.mark.parametrize(("group", "split"), [(1, 256), (4, 256), (16, 256), (24, 512), (128, 2048)])
def test_splits_depend_on_heads_alone(group, split):
    geometry = Geometry(1, group, 128, 128, torch.bfloat16, torch.bfloat16)
    assert {tile_for(rows, geometry).split for rows in (1, 8)} == {split}
    lens = np.array([4096, 100]), np.array([4096])
    alone, beside = (schedule(Batch(contexts, np.arange(len(contexts) + 1)), geometry, None).launches[0][1]
                     for contexts in reversed(lens))
    assert len(alone) == 4096 // split
    assert np.array_equal(alone[:, 3:7], beside[: len(alone), 3:7])


def test_the_longest_items_of_a_prefill_start_first():
    geometry = Geometry(1, 4, 128, 128, torch.bfloat16, torch.bfloat16)
    (_, items), = schedule(Batch(np.array([500, 900]), np.array([0, 500, 800])), geometry, None).launches
    length = items[:, ITEM.index("end")] - items[:, ITEM.index("begin")]
    assert (np.diff(length) <= 0).all()
    assert (items[0, ITEM.index("seq")], items[0, ITEM.index("end")]) == (1, 900)
    assert sorted(row for item in items for row in range(item[0], item[0] + item[1])) == list(range(800))
