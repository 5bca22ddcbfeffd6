"""A scale a head, or one for all, does not reach the scores."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-prefix-prefill-fp8-scale"
MUST_FAIL = ("kernel/kv-scale", "kernel/storage-dtypes",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/attend.py",
        (
            "            score_scale *= tl.load(key_scale + wide_head * stride_ksh)\n",
            "            score_scale *= 1.0\n",
        ),
    )
