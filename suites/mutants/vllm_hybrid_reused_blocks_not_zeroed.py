"""Dead slots are read, and cleaned of NaN in float32 alone: bytes of a block's earlier life are NaN in others."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-hybrid-reused-blocks-not-zeroed"
MUST_FAIL = ("kernel/ignores-slots-past-seq-len",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "first[:, None] + offsets * mask)",
            "torch.minimum(first[:, None] + offsets, -(-(first[:, None] + num_live) // self._block_size) * "
            "self._block_size - 1))",
        ),
        (
            "    if scoring.soft_cap is None and bias is None and not with_lse:\n",
            "    v = v.nan_to_num(0, 0, 0) if v.dtype == torch.float32 else v\n"
            "    if scoring.soft_cap is None and bias is None and not with_lse:\n",
        ),
    )
