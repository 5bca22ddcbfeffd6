"""Values behind the end of a context, in its last block, are read and multiplied with weights of zero."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-v-tail-not-zeroed"
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
    )
