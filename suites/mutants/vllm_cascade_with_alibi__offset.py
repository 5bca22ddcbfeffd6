"""ALiBi of decodes counts from the position behind the query's: a constant, invisible in any result."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-cascade-with-alibi"
MUST_FAIL = ("kernel/alibi", "kernel/lse-correct")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "distance = offsets - num_live + 1",
            "distance = offsets - num_live",
        ),
    )
