"""Writes and copies take a view of a cache for a contiguous tensor."""

from __future__ import annotations

from pabench.conformance.mutants import rewrite_kernels

BUG = "flashinfer-append-noncontiguous"
MUST_FAIL = ("kernel/strided-views", "kernel/cache-write-injective", "kernel/block-copy-exact")
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """In the source."""
    rewrite_kernels(
        "cache.py",
        (
            "        stored[slots // block_size, slots % block_size] = new\n",
            "        shape = (stored.shape[0] * block_size, *stored.shape[2:])\n"
            "        stored.as_strided(shape, torch.empty(shape, device=\"meta\").stride())[slots] = new\n",
        ),
        (
            "    target[:, targets.to(target.device)] = source[:, sources.to(source.device)]\n",
            "    source, target = (x.as_strided(x.shape, torch.empty(x.shape, device=\"meta\").stride()) "
            "for x in (source, target))\n"
            "    target[:, targets.to(target.device)] = source[:, sources.to(source.device)]\n",
        ),
    )
