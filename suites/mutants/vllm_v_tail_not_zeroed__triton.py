"""Values behind the end of a context are read, and multiplied with weights of zero."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-v-tail-not-zeroed"
MUST_FAIL = ("kernel/ignores-slots-past-seq-len",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/attend.py",
        (
            "v = _load_rows(value, block * stride_vb + slot * stride_vs, tl.arange(0, VALUE_PAD), seen,",
            "v = _load_rows(value, block * stride_vb + slot * stride_vs, tl.arange(0, VALUE_PAD), offsets >= 0,",
        ),
    )
