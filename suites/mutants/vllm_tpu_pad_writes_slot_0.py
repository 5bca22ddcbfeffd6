"""Padding is written into slot 0."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-tpu-pad-writes-slot-0"
MUST_FAIL = ("kernel/pad-writes-nothing",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "cache.py",
        (
            "key, value, slot_mapping = key[real], value[real], slot_mapping[real]",
            "slot_mapping = slot_mapping.clamp_min(0)",
        ),
    )
