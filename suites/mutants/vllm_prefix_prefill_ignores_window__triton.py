"""The edge of the window is not masked: a row sees the position before it too."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-prefix-prefill-ignores-window"
MUST_FAIL = ("kernel/sliding-window",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/attend.py",
        (
            "visible &= offsets[None, :] > position[:, None] - window",
            "visible &= offsets[None, :] >= position[:, None] - window",
        ),
    )
