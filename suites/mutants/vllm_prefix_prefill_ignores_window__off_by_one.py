"""A decode sees a position more than its window has."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-prefix-prefill-ignores-window"
MUST_FAIL = ("kernel/sliding-window",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "live = [min(self._contexts[seq], window) for seq in seqs]",
            "live = [min(self._contexts[seq], window + 1) for seq in seqs]",
        ),
    )
