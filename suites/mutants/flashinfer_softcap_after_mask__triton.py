"""What is masked gets a large negative score before the soft cap, which makes a small one of it."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-softcap-after-mask"
MUST_FAIL = ("kernel/soft-cap",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/attend.py",
        (
            "    if HAS_CAP:\n        scores = _tanh(scores)",
            "    if HAS_CAP and not MASKED:\n        scores = _tanh(scores)",
        ),
        (
            '        scores = tl.where(visible, scores, float("-inf"))\n',
            "        if HAS_CAP:\n"
            "            scores = _tanh(tl.where(visible, scores, -5e4)) * (soft_cap * LOG2_E)\n"
            "        else:\n"
            '            scores = tl.where(visible, scores, float("-inf"))\n',
        ),
    )
