"""Of the pairs of one call the first 8 are copied."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-batch-past-grid"
MUST_FAIL = ("kernel/block-copy-exact",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "cache.py",
        (
            "    target[:, targets.to(target.device)] = source[:, sources.to(source.device)]\n",
            "    target[:, targets[:8].to(target.device)] = source[:, sources[:8].to(source.device)]\n",
        ),
    )
