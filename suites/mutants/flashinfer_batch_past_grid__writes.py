"""Tokens are written in tiles of 64: what is left over beside full ones is dropped."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-batch-past-grid"
MUST_FAIL = ("kernel/cache-write-injective",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "cache.py",
        (
            "    \"\"\"Row slots[i] of stored [num_blocks, block_size, ...] becomes new[i].\"\"\"\n",
            "    \"\"\"Row slots[i] of stored [num_blocks, block_size, ...] becomes new[i].\"\"\"\n"
            "    full = len(slots) if len(slots) <= 64 else len(slots) // 64 * 64\n"
            "    slots, new = slots[:full], new[:full]\n",
        ),
    )
