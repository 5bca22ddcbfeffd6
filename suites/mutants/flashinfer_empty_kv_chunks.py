"""A sequence without positions gets no work item, and its rows are never written."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-empty-kv-chunks"
MUST_FAIL = ("kernel/every-row-written", "kernel/empty-sequence")
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/schedule.py",
        (
            "splits = np.maximum(1, -(-end // tile.split) - begin // tile.split)",
            "splits = np.maximum(0, -(-end // tile.split) - begin // tile.split)",
        ),
    )
