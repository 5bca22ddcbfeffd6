"""A chunk reads a position more than has been written."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "nanovllm-seqlen-k-past-chunk"
MUST_FAIL = ("kernel/equals-dense", "kernel/block-boundary-lengths")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "seen = torch.arange(max(0, first_query - window + 1), context, device",
            "seen = torch.arange(max(0, first_query - window + 1), context + 1, device",
        ),
        (
            "mask = seen <= rows",
            "mask = seen <= rows + 1",
        ),
        (
            "is_causal = first_query == 0 and window >= context",
            "is_causal = False",
        ),
    )
