"""One length for all is spread over the blocks of a table rather than over the sequences."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "fa-scalar-cache-seqlens"
MUST_FAIL = ("kernel/argument-forms",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "attention.py",
        (
            "    contexts, starts = context_lens.cpu().long(), query_start_loc.cpu().long()\n",
            "    if context_lens.stride(0) == 0:\n"
            "        context_lens = context_lens[:1].expand(block_tables.shape[1])\n"
            "    contexts, starts = context_lens.cpu().long(), query_start_loc.cpu().long()\n",
        ),
    )
