"""The kernels that move data, for `compile`: cache write, block copy, merge of parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from paged_kernels.triton_backend.attend import NO_SCALE, SCALE_A_HEAD, SCALE_A_SLOT, merge_kernel
from paged_kernels.triton_backend.cache import _COPY_BYTES, copy_kernel, write_kernel
from paged_kernels.triton_backend.launch import _MERGE_PARTS

_HEAD_DIM, _KV_HEADS, _Q_HEADS, _BLOCK_SIZE = 128, 8, 32, 16
_LIMITS = {"i8": 127.0, "fp8e4nv": 448.0}


class Move(NamedTuple):
    """One specialisation: what the table says of it, the kernel and its arguments, as types or as constants."""

    text: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4

    def source(self) -> ASTSource:
        """With the divisibility of addresses and strides that a launch would give it."""
        types = self.types | dict.fromkeys(self.constants, "constexpr")
        signature = {name: types.get(name, "i32") for name in self.kernel.arg_names}
        aligned = [i for i, (name, kind) in enumerate(signature.items())
                   if kind.startswith("*") or name.startswith("stride_")]
        values = {(self.kernel.arg_names.index(name),): value for name, value in self.constants.items()}
        return ASTSource(self.kernel, signature, values, {(i,): [["tt.divisibility", 16]] for i in aligned})


def moves(target: GPUTarget) -> Iterator[Move]:
    """All that are compiled for a target: 8 KV heads and 32 query heads of 128, blocks of 16."""
    for stored, scales in (("bf16", NO_SCALE), ("i8", SCALE_A_SLOT), ("fp8e4nv", SCALE_A_SLOT),
                           ("fp8e4nv", SCALE_A_HEAD)):
        bits = stored == "fp8e4nv" and not (target.backend == "cuda" and target.arch >= 89)
        kept = "u8" if bits else stored
        said = {NO_SCALE.value: "none", SCALE_A_SLOT.value: "a scale a slot"}.get(scales.value, "a scale a head")
        types = dict.fromkeys(("key", "value"), "*bf16") | dict.fromkeys(("stored_key", "stored_value"), f"*{kept}")
        types |= {"key_scale": "*fp32", "value_scale": "*fp32", "slots": "*i64"}
        yield Move(f"write | – | {_HEAD_DIM} | bf16 | {stored} | {_BLOCK_SIZE} | {said}", write_kernel, types, {
            "BLOCK_SIZE": _BLOCK_SIZE, "NUM_KV_HEADS": _KV_HEADS, "HEADS": _KV_HEADS, "HEAD_DIM": _HEAD_DIM,
            "VALUE_DIM": _HEAD_DIM, "HEAD_PAD": _HEAD_DIM, "VALUE_PAD": _HEAD_DIM, "SCALES": scales.value,
            "LIMIT": _LIMITS.get(stored, 0.0), "INTEGER": stored == "i8", "FP8_BITS": bits})
    blocks = {"source": "*i32", "target": "*i32", "source_blocks": "*i64", "target_blocks": "*i64"}
    yield Move(f"copy | – | – | – | any | {_BLOCK_SIZE} | none", copy_kernel, blocks, {"CHUNK": _COPY_BYTES // 4})
    parts = dict.fromkeys(("part_out", "part_lse", "lse"), "*fp32") | {
        "part_starts": "*i32", "part_rows": "*i32", "out": "*bf16"}
    for with_lse in (False, True):
        yield Move(f"merge | – | {_HEAD_DIM} | bf16 | – | – | {'LSE' if with_lse else 'none'}", merge_kernel, parts, {
            "NUM_Q_HEADS": _Q_HEADS, "VALUE_DIM": _HEAD_DIM, "VALUE_PAD": _HEAD_DIM, "PARTS": _MERGE_PARTS,
            "WITH_LSE": with_lse}, num_warps=1)
