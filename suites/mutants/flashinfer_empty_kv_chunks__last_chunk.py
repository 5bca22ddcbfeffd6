"""The last, shorter part of a long context gets no work item."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-empty-kv-chunks"
MUST_FAIL = ("kernel/split-invariant",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/schedule.py",
        (
            "splits = np.maximum(1, -(-end // tile.split) - begin // tile.split)",
            "splits = np.maximum(1, end // tile.split - begin // tile.split)",
        ),
    )
