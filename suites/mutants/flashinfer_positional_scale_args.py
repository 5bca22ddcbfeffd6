"""The entry that gives the log-sum-exp too drops the scales of keys and values."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-positional-scale-args"
MUST_FAIL = ("kernel/kv-scale",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "attention.py",
        (
            "out, lse = self._plan.run(query, cache, scoring, with_lse=True)",
            "out, lse = self._plan.run(query, KVCache(*cache[:2]), scoring, with_lse=True)",
        ),
    )
