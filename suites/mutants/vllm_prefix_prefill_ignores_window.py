"""A chunk of several rows has no window but for the first position that any of them sees."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-prefix-prefill-ignores-window"
MUST_FAIL = ("kernel/sliding-window",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "mask &= seen > rows - window",
            "mask &= seen > rows - context",
        ),
    )
