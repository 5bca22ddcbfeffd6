"""Samples that share a partly filled last block all write into it in place."""

from __future__ import annotations

from reference_engine.memory.paged import PagedAllocator

BUG = "xllm-beam-cow-missing"
MUST_FAIL = ("http/n-samples-isolated", "http/beam-isolated", "alloc/single-writer")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """No copy on write."""
    PagedAllocator._must_copy_last = lambda self, held: False  # type: ignore[method-assign]
