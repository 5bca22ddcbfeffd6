"""Table entries behind the end of a short context are followed, to the length of the longest in the batch."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "sglang-padding-page-nan"
MUST_FAIL = ("kernel/ignores-unused-table-entries",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "first[:, None] + offsets * mask)",
            "(first[:, None] + offsets).clamp(max=self._tables.shape[1] * self._block_size - 1))",
        ),
    )
