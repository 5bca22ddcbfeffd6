"""A write into a scaled cache multiplies the number of a block with the stride of a block in 32 bits."""

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
            "        x = x.to(tl.float32)\n"
            "        scales = scale",
            "        x = x.to(tl.float32)\n"
            "        target += (block.to(tl.int32) * stride_cb.to(tl.int32)).to(tl.int64) - block * stride_cb\n"
            "        scales = scale",
        ),
    )
