"""The memory of a result is given out again while the caller still holds the result."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "fa2-split-buffers-freed-early"
MUST_FAIL = ("kernel/results-stay",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "        out = query.new_zeros(*query.shape[:2], cache.value.shape[3])\n",
            "        shape = (*query.shape[:2], cache.value.shape[3])\n"
            "        out = _workspace(\"out\", len(query), shape[1] * shape[2], query.dtype, "
            "query.device).view(shape).zero_()\n",
        ),
    )
