"""Of a batch the first 8 sequences have tables of their own: all others read by that of the first."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-batch-past-grid"
MUST_FAIL = ("kernel/equals-dense",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "        self._tables, self._block_size = block_tables.long(), block_size\n",
            "        first = torch.arange(len(block_tables), device=block_tables.device)\n"
            "        self._tables, self._block_size = block_tables.long()[first * (first < 8)], block_size\n",
        ),
    )
