"""`python -m paged_kernels.triton_backend.compile`: the kernels ahead of time, for GPUs that are not there.

Every tile of the attention kernel is compiled for each target, plain and with all options on, over stored values of
each kind; then cache write, block copy and merge. A row a variant: registers, bytes that spill to memory, shared
memory, and how many tiles of keys and of values have a buffer. Exit code 1 where something spills, or needs more shared
memory than the target has, or loads no tile ahead, or does not compile. All cores are used. Run it without
TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from paged_kernels.triton_backend.attend import NO_SCALE, SCALE_A_HEAD, SCALE_A_SLOT, attend_kernel
from paged_kernels.triton_backend.compile_moves import Move, moves
from paged_kernels.triton_backend.launch import constants
from paged_kernels.triton_backend.tiles import FEW_ROWS, SPLIT_ROWS, Geometry, Tile, tile_for

# Target -> shared memory of one program, bytes.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 << 10), "sm_90": (GPUTarget("cuda", 90, 32), 227 << 10),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 << 10), "gfx942": (GPUTarget("hip", "gfx942", 64), 64 << 10),
}
ROWS = {"decode": 1, "drafts": FEW_ROWS, "prefill": SPLIT_ROWS + 1}
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "i8",
          torch.float8_e4m3fn: "fp8e4nv"}
_FLOAT_POINTERS = ("key_scale", "value_scale", "alibi_slopes", "lse", "part_out", "part_lse")
_INT_POINTERS = ("tables", "positions", "items", "num_items")
_ANY_STRIDES = ("stride_ksb", "stride_kss", "stride_ksh", "stride_vsb", "stride_vss", "stride_vsh", "stride_table")


class Variant(NamedTuple):
    """One specialisation of the kernel."""

    kind: str
    head_dim: int
    query: torch.dtype
    storage: torch.dtype
    options: bool    # window, soft cap, ALiBi and LSE, all on
    block_size: int = 16
    group: int = 4   # query heads of a KV head
    scale: str = "slot"  # of a storage that has one: a scale a "slot", or one for all of a "tensor"

    def __str__(self) -> str:
        scale = "" if self.scale == "slot" else f", a scale a {self.scale}"
        return (f"{self.kind} | {self.group} | {self.head_dim} | {_NAMES[self.query]} | {_NAMES[self.storage]} | "
                f"{self.block_size} | {'all' if self.options else 'none'}{scale}")

    def loads_ahead(self, target: GPUTarget) -> bool:
        """Whether the next tile has to be on its way while one is computed: NVIDIA's, products of 16 bits."""
        return target.backend == "cuda" and self.query != torch.float32


class Cost(NamedTuple):
    """What a variant takes of a target, per thread and per program."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    buffers: int = 0     # of the tiles of keys, or of values; 0: they are not copied ahead
    waits_for_all: bool = True  # some wait for a tile leaves no copy of a later one in flight


def variants() -> Iterator[Variant]:
    """All that are compiled: 8 KV heads, 4 query heads each; decodes with 8 and 32 too, drafts with 32 and 71."""
    for kind in ROWS:
        for head_dim in (64, 80, 128, 256):
            for options in (False, True):
                yield Variant(kind, head_dim, torch.bfloat16, torch.bfloat16, options)
        yield Variant(kind, 128, torch.bfloat16, torch.bfloat16, False, block_size=128)
        for storage in (torch.int8, torch.float8_e4m3fn):
            yield Variant(kind, 128, torch.bfloat16, storage, False)
        yield Variant(kind, 128, torch.float16, torch.float16, False)
        yield Variant(kind, 128, torch.float32, torch.float32, False)
    for group in (8, 32):
        for storage in (torch.bfloat16, torch.float8_e4m3fn):
            yield Variant("decode", 128, torch.bfloat16, storage, False, group=group,
                          scale="tensor" if storage == torch.float8_e4m3fn else "slot")
    for group in (32, 71):  # 64 lanes and 128
        for head_dim in (64, 128):
            for options in (False, True):
                yield Variant("drafts", head_dim, torch.bfloat16, torch.bfloat16, options, group=group)
    yield Variant("prefill", 128, torch.bfloat16, torch.bfloat16, True, group=71)
    # What bench reads, and what has spilled: wide heads or rows, operands that are widened in registers.
    fp8 = torch.float8_e4m3fn
    yield Variant("decode", 128, torch.bfloat16, fp8, False, scale="tensor")
    yield Variant("decode", 256, torch.bfloat16, fp8, True)
    yield Variant("drafts", 128, torch.bfloat16, fp8, False, group=8)
    yield Variant("prefill", 256, torch.bfloat16, fp8, False)
    yield Variant("prefill", 128, torch.float32, fp8, False)


def compile_variant(variant: Variant, target: GPUTarget) -> Cost:
    """Compile one variant. Raises what Triton raises."""
    geometry = Geometry(8, variant.group, variant.head_dim, variant.head_dim, variant.query, variant.storage)
    kind = "amd" if target.backend == "hip" else "blackwell" if target.arch >= 100 else "nvidia"
    tile = tile_for(ROWS[variant.kind], geometry, target=kind)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return _cost(triton.compile(_source(variant, geometry, tile, target), target=target, options=options), target)


def compile_move(move: Move, target: GPUTarget) -> Cost:
    """Compile a kernel that moves data. Raises what Triton raises."""
    return _cost(triton.compile(move.source(), target=target, options={"num_warps": move.num_warps}), target)


def _cost(compiled: Any, target: GPUTarget) -> Cost:
    if target.backend == "hip":
        registers, spilled = (_amd(compiled, name) for name in ("vgpr_count", "private_segment_fixed_size"))
        return Cost(registers, spilled, compiled.metadata.shared)
    registers, stack, local = _nvidia(compiled.asm["cubin"])
    return Cost(registers, stack + local, compiled.metadata.shared, *_ahead(compiled.asm["ttgir"]))


def _ahead(ttgir: str) -> tuple[int, bool]:
    """`Cost.buffers` and `waits_for_all`, as the pipeliner left them.

    A tile's buffers are one allocation [buffers, TILE, dim]. A wait names the copies that it waits for, and how many
    may stay in flight; the one behind a loop names none.
    """
    buffers = [int(count) for count in re.findall(r"ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x\d+x", ttgir)]
    in_flight = [int(count) for count in re.findall(r"ttg\.async_wait %[^{\n]*\{num = (\d+)", ttgir)]
    return min(buffers, default=0), not in_flight or min(in_flight) == 0


def _source(variant: Variant, geometry: Geometry, tile: Tile, target: GPUTarget) -> ASTSource:
    """The kernel with the types, and the divisibility of addresses and strides, that a launch would give it."""
    has_fp8 = target.backend == "cuda" and target.arch >= 89
    fp8_bits = variant.storage == torch.float8_e4m3fn and not has_fp8
    scaled = variant.storage in (torch.int8, torch.float8_e4m3fn)
    query, stored = _NAMES[variant.query], "u8" if fp8_bits else _NAMES[variant.storage]
    kind = NO_SCALE if not scaled else SCALE_A_SLOT if variant.scale == "slot" else SCALE_A_HEAD
    fixed = constants(
        geometry, tile, variant.block_size, window=variant.options, soft_cap=variant.options, alibi=variant.options,
        scales=kind.value, fp8_bits=fp8_bits, lse=variant.options)
    types = dict.fromkeys(("query", "out"), f"*{query}") | dict.fromkeys(("key", "value"), f"*{stored}")
    types |= dict.fromkeys(_FLOAT_POINTERS, "*fp32") | dict.fromkeys(_INT_POINTERS, "*i32")
    types |= {"scale": "fp32", "soft_cap": "fp32"} | dict.fromkeys(fixed, "constexpr")
    signature = {name: types.get(name, "i32") for name in attend_kernel.arg_names}
    aligned = [i for i, (name, kind) in enumerate(signature.items())
               if kind.startswith("*") or (name.startswith("stride_") and name not in _ANY_STRIDES)]
    return ASTSource(
        attend_kernel, signature, {(attend_kernel.arg_names.index(name),): value for name, value in fixed.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned})


def _nvidia(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack and of local memory of a thread, as cuobjdump reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text.stdout))
    return int(found["REG"]), int(found["STACK"]), int(found["LOCAL"])


def _amd(compiled: Any, field: str) -> int:
    """A number of the kernel's metadata in the assembly."""
    found = re.search(rf"\.{field}:\s+(\d+)", compiled.asm["amdgcn"])
    if found is None:
        raise ValueError(f"the assembly tells no {field}")
    return int(found[1])


def main(argv: list[str]) -> int:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    names = parser.parse_args(argv).target or list(TARGETS)
    print("| target | rows | group | head_dim | query | stored | block | options | registers | spilled bytes | "
          "shared KiB | buffers | |")
    print("|" + " --- |" * 13)
    bad = 0
    wanted = [(name, at) for name in names for at in range(len(_all_of(name)))]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, text, cost, fault in pool.map(_compile, *zip(*wanted, strict=True)):
            bad += bool(fault)
            print(f"| {name} | {text} | {cost.registers} | {cost.spilled_bytes} | {cost.shared_bytes / 1024:.0f} "
                  f"| {cost.buffers or '–'} | {fault} |", flush=True)
    print(f"\n{bad} variants at fault" if bad else "\nno spills")
    return 1 if bad else 0


def _all_of(name: str) -> list[Variant | Move]:
    """All that is compiled for a target, in the order of the table."""
    return [*variants(), *moves(TARGETS[name][0])]


def _compile(name: str, at: int) -> tuple[str, str, Cost, str]:
    """The row of a target and a place in `_all_of`, which can be sent to another process as kernels cannot."""
    (target, room), one = TARGETS[name], _all_of(name)[at]
    cost = compile_variant(one, target) if isinstance(one, Variant) else compile_move(one, target)
    return name, str(one) if isinstance(one, Variant) else one.text, cost, _fault(one, cost, target, room)


def _fault(variant: Variant | Move, cost: Cost, target: GPUTarget, room: int) -> str:
    """What is wrong with a variant; "" for nothing."""
    if cost.spilled_bytes:
        return "spills"
    if cost.shared_bytes > room:
        return "too much shared memory"
    ahead = isinstance(variant, Variant) and variant.loads_ahead(target)
    return "loads no tile ahead" if ahead and (cost.buffers < 2 or cost.waits_for_all) else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
