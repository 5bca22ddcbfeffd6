"""Partial results are added up without rescaling what came before a larger log-sum-exp."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-empty-kv-chunks"
MUST_FAIL = ("kernel/merge-equals-dense",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/attend.py",
        (
            "acc = acc * shrink + tl.sum(weights[:, None] * values, 0)",
            "acc = acc + tl.sum(weights[:, None] * values, 0)",
        ),
        (
            "total = total * shrink + tl.sum(weights, 0)",
            "total = total + tl.sum(weights, 0)",
        ),
    )
