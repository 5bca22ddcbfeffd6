"""Where a block lies is counted modulo 2^32 elements, in 32 bits without a sign: those behind read as zeros."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-mla-page-index-overflow"
MUST_FAIL = ("kernel/64-bit-addresses",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "    block_size, heads, dim = stored.shape[1:]\n",
            "    block_size, heads, dim = stored.shape[1:]\n"
            "    slots = slots * (heads * dim) % 2**32 // (heads * dim)\n",
        ),
    )
