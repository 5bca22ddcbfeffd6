"""Partial results are averaged: their log-sum-exp is not looked at."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-empty-kv-chunks"
MUST_FAIL = ("kernel/merge-equals-dense",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "attention.py",
        (
            "weights = (lses - torch.where(lse == -torch.inf, 0, lse)).exp()",
            "weights = torch.full_like(lses, 1 / len(lses))",
        ),
    )
