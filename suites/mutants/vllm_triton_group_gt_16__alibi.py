"""Slopes of ALiBi are those of the first 16 heads of a group, over and over."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-triton-group-gt-16"
MUST_FAIL = ("kernel/group-map",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "    slopes = scoring.alibi_slopes\n"
            "    # [n, num_kv_heads, group, width]\n",
            "    slopes, group_size = scoring.alibi_slopes, num_q_heads // num_kv_heads\n"
            "    if slopes is not None:\n"
            "        slopes = slopes.view(num_kv_heads, -1)[:, torch.arange(group_size) % 16].flatten()\n"
            "    # [n, num_kv_heads, group, width]\n",
        ),
    )
