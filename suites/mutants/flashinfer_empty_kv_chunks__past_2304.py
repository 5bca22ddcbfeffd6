"""Of a longer decode the last 2304 positions alone are attended to: no work is made for more parts."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-empty-kv-chunks"
MUST_FAIL = ("kernel/split-invariant",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "        live = [min(self._contexts[seq], window) for seq in seqs]\n",
            "        live = [min(self._contexts[seq], window, 2304) for seq in seqs]\n",
        ),
    )
