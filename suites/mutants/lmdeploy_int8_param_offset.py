"""The scales of all heads of a slot go to one place: the last one stays."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "lmdeploy-int8-param-offset"
MUST_FAIL = ("kernel/cache-write-injective",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "cache.py",
        (
            "_put(scale, slots, new_scale)",
            "_put(scale, slots, new_scale[:, -1:].expand(new_scale.shape))",
        ),
    )
