"""A tile of 16 lanes holds no row of a larger group."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-triton-group-gt-16"
MUST_FAIL = ("kernel/group-map",)
ENGINE_ARGS: tuple[str, ...] = ()
IMPL = {"kernel": "paged-triton"}


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "triton_backend/tiles.py",
        (
            "return max(1, self.block_m // group)",
            "return self.block_m // group",
        ),
        (
            "at_least = max(16, next_power_of_2(group))",
            "at_least = 16",
        ),
        (
            "min(most, next_power_of_2(FEW_ROWS * group))",
            "16",
        ),
    )
