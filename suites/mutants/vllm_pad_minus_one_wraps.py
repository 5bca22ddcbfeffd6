"""Padding of slot -1 is written into the last slot."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-pad-minus-one-wraps"
MUST_FAIL = ("kernel/pad-writes-nothing",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "cache.py",
        (
            "key, value, slot_mapping = key[real], value[real], slot_mapping[real]",
            "slot_mapping = slot_mapping % (cache.key.shape[0] * cache.key.shape[1])",
        ),
    )
