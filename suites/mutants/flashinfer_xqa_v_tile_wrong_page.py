"""The values of a tile are all read from the block of its first position."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-xqa-v-tile-wrong-page"
MUST_FAIL = ("kernel/block-sizes", "kernel/block-permutation-invariant")
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/attend.py",
        (
            "v = _load_rows(value, block * stride_vb",
            "block = tl.load(table + tl.maximum(start, begin) // BLOCK_SIZE).to(tl.int64)\n"
            "    v = _load_rows(value, block * stride_vb",
        ),
    )
