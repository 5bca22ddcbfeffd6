"""The number of a block is multiplied with the stride of a block in 32 bits."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-int32-block-offset"
MUST_FAIL = ("kernel/64-bit-addresses",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/attend.py",
        (
            "block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)",
            "block = tl.load(table + start // BLOCK_SIZE)",
        ),
        (
            "block = _load(table + offsets // BLOCK_SIZE, seen, MASKED, 0).to(tl.int64)",
            "block = _load(table + offsets // BLOCK_SIZE, seen, MASKED, 0)",
        ),
    )
