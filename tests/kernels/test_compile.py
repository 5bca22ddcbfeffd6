"""What the ahead-of-time compiler's table says of a variant, and one variant compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from paged_kernels.triton_backend.compile import TARGETS, Cost, Variant, _ahead, _fault, variants
from paged_kernels.triton_backend.compile_moves import moves
from paged_kernels.triton_backend.tiles import Geometry, tile_for

BF16 = Variant("decode", 128, torch.bfloat16, torch.bfloat16, False)
LOOP = """
  %x = ttg.local_alloc : () -> !ttg.memdesc<{buffers}x64x128xbf16, #shared2, #smem, mutable> loc(#loc4)
  %block = ttg.local_alloc : () -> !ttg.memdesc<2x64xi32, #shared1, #smem, mutable> loc(#loc4)
  %q = ttg.local_alloc %p : (tensor<16x128xbf16, #blocked>) -> !ttg.memdesc<16x128xbf16, #shared, #smem> loc(#loc2)
  %1 = ttg.async_wait %a, %b {{num = {flying} : i32}} loc(#loc4)
  %2 = ttg.async_wait {{num = 0 : i32}} loc(#loc4)
"""


@pytest.mark.parametrize(("buffers", "flying", "fault"), [
    (2, 3, ""), (3, 1, ""), (1, 0, "loads no tile ahead"), (1, 1, "loads no tile ahead"), (2, 0, "loads no tile ahead"),
])
def test_a_main_loop_that_loads_nothing_ahead_is_at_fault(buffers: int, flying: int, fault: str) -> None:
    target, room = TARGETS["sm_90"]
    cost = Cost(100, 0, 1 << 15, *_ahead(LOOP.format(buffers=buffers, flying=flying)))
    assert cost.buffers == buffers
    assert _fault(BF16, cost, target, room) == fault
    assert _fault(BF16._replace(query=torch.float32), cost, target, room) == "", "exact products hold all in registers"
    assert _fault(next(moves(target)), cost, target, room) == _fault(BF16, cost, TARGETS["gfx942"][0], room) == ""


def test_no_copies_at_all_are_a_fault_too() -> None:
    target, room = TARGETS["sm_80"]
    assert _fault(BF16, Cost(100, 0, 1 << 15, *_ahead("")), target, room) == "loads no tile ahead"
    assert _fault(BF16, Cost(100, 8, 1 << 15, 2, False), target, room) == "spills"
    assert _fault(BF16, Cost(100, 0, room + 1, 2, False), target, room) == "too much shared memory"


def test_what_the_bench_reads_is_compiled() -> None:
    """fp8 with one scale for all, for each number of heads."""
    fp8 = {each.group for each in variants() if each.scale == "tensor" and each.kind == "decode"}
    assert fp8 == {4, 8, 32}


def test_drafts_of_many_heads_are_compiled() -> None:
    """Of as many lanes as there are: 32, 64 and 128."""
    drafts = {each.group for each in variants() if each.kind == "drafts" and each.storage == torch.bfloat16}
    assert drafts == {4, 32, 71}


def test_a_decode_loads_the_next_tile_ahead() -> None:
    code = ("from paged_kernels.triton_backend.compile import TARGETS, _fault, compile_variant, variants;"
            "target, room = TARGETS['sm_90']; variant = next(variants())._replace(head_dim=128);"
            "cost = compile_variant(variant, target); print(cost.buffers, repr(_fault(variant, cost, target, room)))")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1",
                   "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment,
                          check=False)
    assert done.stdout.split() == ["2", "''"], done.stderr


@pytest.mark.parametrize("target", ["nvidia", "blackwell"])
def test_stages_and_tiles_follow_what_is_computed(target: str) -> None:
    def tile(rows: int, query: torch.dtype, storage: torch.dtype, group: int = 4):
        return tile_for(rows, Geometry(8, group, 128, 128, query, storage), target=target)

    for rows in (1, 8, 64, 100):
        assert tile(rows, torch.bfloat16, torch.bfloat16).num_stages == 5
        assert tile(rows, torch.float32, torch.float32).num_stages == 2
    assert tile(1, torch.bfloat16, torch.float8_e4m3fn)[:3] == (16, 64, 8)
    assert tile(8, torch.bfloat16, torch.float8_e4m3fn, 8).block_m == tile(
        100, torch.bfloat16, torch.int8).block_m == 32
    assert tile(8, torch.bfloat16, torch.bfloat16)[:3] == (32, 64, 4)
    assert tile(8, torch.bfloat16, torch.bfloat16, 8)[:3] == (64, 64, 8), "with 4 warps, more than 32 lanes spill"
    for rows in (1, 8, 100):  # a row of so many heads is a tile of its own, whatever it belongs to
        assert tile(rows, torch.bfloat16, torch.bfloat16, 71)[:3] == (128, 32, 8)
