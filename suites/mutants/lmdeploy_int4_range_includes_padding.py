"""The range of a head's numbers takes in what stands beside them."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "lmdeploy-int4-range-includes-padding"
MUST_FAIL = ("kernel/quantisation-error-bounded",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "cache.py",
        (
            "scale = wide.abs().amax(-1) / limit",
            "scale = (wide.abs().amax((-2, -1)) / limit)[..., None].expand(wide.shape[:-1])",
        ),
    )
