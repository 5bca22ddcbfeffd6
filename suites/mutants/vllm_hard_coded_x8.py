"""Keys are taken to be packed by eights, as they are in 16 bits alone."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "vllm-hard-coded-x8"
MUST_FAIL = ("kernel/storage-dtypes", "kernel/head-dims")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "torch_backend.py",
        (
            "    if scale is None:\n"
            "        return rows.to(dtype)\n",
            "    if role == \"key\" and stored.element_size() != 2 and dim % 8 == 0:\n"
            "        rows = rows.view(-1, heads, 8, dim // 8).transpose(2, 3).reshape(-1, heads, dim)\n"
            "    if scale is None:\n"
            "        return rows.to(dtype)\n",
        ),
    )
