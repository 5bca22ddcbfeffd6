"""Our own kernels, a factory a backend: attention, cache write, block copy and merge of paged_kernels.

Without a GPU, Triton's kernels run in its interpreter, on CPU tensors.
"""

from __future__ import annotations

import os
import sys

import torch
from paged_kernels import KVCache, copy_blocks, merge_states, plan_attention, write_kv

from pabench.conformance.kernel.adapter import Batch, Cache
from pabench.conformance.kernel.cases import AttendCase, Case, CopyCase


class PagedKernels:
    """One backend."""

    def __init__(self, backend: str, capabilities: frozenset[str], device: str = "cpu") -> None:
        self.backend, self.capabilities, self.device = backend, capabilities, device

    def describe(self) -> str:
        """What really runs."""
        where = "" if self.backend != "triton" else " on a GPU" if self.device == "cuda" else " in its interpreter"
        return f"paged_kernels, backend {self.backend}{where}"

    def unsupported(self, case: Case) -> list[str]:
        """What the backend refuses."""
        if self.backend == "numba" and isinstance(case, AttendCase):
            same = case.form.head_dim == case.form.value_dim
            refused = {"ALiBi": case.alibi, "values of another width than keys": not same,
                       "a cache that is not contiguous": case.form.layout not in ("plain", "far")}
            return [f"backend numba does not do {what}" for what, asked in refused.items() if asked]
        if self.backend == "triton" and isinstance(case, CopyCase) and case.form.layout == "padded":
            return ["backend triton copies blocks whose elements lie side by side"]
        return []

    def attend(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One plan, one call."""
        plan = plan_attention(batch.block_tables, batch.context_lens, batch.query_start_loc, batch.cache.key.shape[1],
                              backend=self.backend, shared_prefix_len=batch.shared_prefix_len)
        cache = KVCache(*batch.cache)
        scoring = {"scale": batch.scale, "window": batch.window, "soft_cap": batch.soft_cap,
                   "alibi_slopes": batch.alibi_slopes}
        if batch.with_lse:
            return plan.attend_with_lse(batch.query, cache, **scoring)
        return plan.attend(batch.query, cache, **scoring), None

    def write(self, key: torch.Tensor, value: torch.Tensor, cache: Cache, slot_mapping: torch.Tensor) -> None:
        """As it is there."""
        write_kv(key, value, KVCache(*cache), slot_mapping, backend=self.backend)

    def copy_blocks(self, source: Cache, target: Cache, pairs: torch.Tensor) -> None:
        """Each part of the cache is one outer slice; heads that stand before slots in memory are seen so."""
        for a, b in zip(source, target, strict=True):
            if a is not None and b is not None and a.dim() >= 3:
                a, b = (x if x[0].is_contiguous() else x.transpose(1, 2) for x in (a, b))
                copy_blocks(a[None], b[None], pairs.cpu(), backend=self.backend)

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As it is there."""
        return merge_states(outs, lses, backend=self.backend)


def in_torch() -> PagedKernels:
    """Plain torch."""
    return PagedKernels("torch", frozenset({"lse", "write", "copy", "merge"}))


def in_numba() -> PagedKernels:
    """Compiled for the CPU: attention alone, without LSE. Long prefills are torch's."""
    return PagedKernels("numba", frozenset())


def in_triton() -> PagedKernels:
    """On a GPU, or interpreted."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and os.environ.setdefault("TRITON_INTERPRET", "1") == "1":
        for module, function in (("triton.language", "max"), ("paged_kernels.triton_backend.attend", "attend_kernel")):
            loaded = sys.modules.get(module)
            if loaded is not None and not hasattr(getattr(loaded, function), "rewrite"):
                raise RuntimeError("Triton was imported before TRITON_INTERPRET was 1")
    return PagedKernels("triton", frozenset({"lse", "write", "copy", "merge"}), device)
