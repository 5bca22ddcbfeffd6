"""The number of a block is compared with a bound in tokens, so that blocks past the end count as live."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-mla-page-vs-token-bound"
MUST_FAIL = ("kernel/ignores-unused-table-entries",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "mask = offsets < num_live",
            "mask = offsets // self._block_size < num_live",
        ),
    )
