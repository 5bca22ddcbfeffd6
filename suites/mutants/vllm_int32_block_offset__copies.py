"""A copy multiplies the number of a block with the stride of a block in 32 bits."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-int32-block-offset"
MUST_FAIL = ("kernel/64-bit-addresses",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/cache.py",
        (
            "tl.load(source_blocks + pair).to(tl.int64) * stride_sb",
            "tl.load(source_blocks + pair).to(tl.int32) * stride_sb.to(tl.int32)",
        ),
        (
            "tl.load(target_blocks + pair).to(tl.int64) * stride_tb",
            "tl.load(target_blocks + pair).to(tl.int32) * stride_tb.to(tl.int32)",
        ),
    )
