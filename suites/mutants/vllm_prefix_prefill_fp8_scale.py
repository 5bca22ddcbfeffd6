"""Prefills read a scaled cache without its scales."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-prefix-prefill-fp8-scale"
MUST_FAIL = ("kernel/kv-scale", "kernel/storage-dtypes")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "_gather(role, stored, scales, prefill.slots, query.dtype).transpose(0, 1)",
            "_gather(role, stored, None, prefill.slots, query.dtype).transpose(0, 1)",
        ),
    )
