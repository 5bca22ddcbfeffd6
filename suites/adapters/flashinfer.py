"""FlashInfer's paged prefill, cache append and merge. Written from its documentation; it needs an NVIDIA GPU.

Its kernels take decodes and chunks alike. Their LSE is in base 2, and finite where a row sees nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pabench.conformance.kernel.adapter import Batch, Cache
from pabench.conformance.kernel.cases import SCALED, AttendCase, CacheForm, Case, CopyCase, MergeCase, WriteCase

_WORKSPACE_BYTES = 128 << 20
_HEAD_DIMS = (64, 128, 256)
_MERGE_DIMS = (*_HEAD_DIMS, 512)
_INFINITY = 5e4  # as its kernels have it (math.cuh); with what is added to it, no sum of scores comes near half of it


class FlashInfer:
    """BatchPrefillWithPagedKVCacheWrapper over the layout NHD, which is the canonical one."""

    capabilities = frozenset({"lse", "write", "merge"})
    device = "cuda"

    def __init__(self, library: Any) -> None:
        self._library = library
        workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=self.device)
        self._wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")

    def describe(self) -> str:
        """What really runs."""
        return f"flashinfer {self._library.__version__} on {torch.cuda.get_device_name()}, paged prefill for all rows"

    def unsupported(self, case: Case) -> list[str]:
        """What its documentation does not promise."""
        if isinstance(case, CopyCase):
            return ["flashinfer copies no blocks"]
        reasons = _of_form(case.form) if isinstance(case, (AttendCase, WriteCase)) else []
        if isinstance(case, AttendCase):
            refused = {
                f"queries in {case.dtype} over a cache in {case.form.storage}": case.dtype != case.form.storage,
                "ALiBi slopes of the caller's": case.alibi,
            }
            reasons += [f"flashinfer does not take {what}" for what, asked in refused.items() if asked]
        if isinstance(case, MergeCase):
            refused = {"parts in float32": case.dtype == "float32",
                       f"parts of head dim {case.dim}": case.dim not in _MERGE_DIMS}
            reasons += [f"flashinfer does not merge {what}" for what, asked in refused.items() if asked]
        if isinstance(case, WriteCase) and (min(case.slots) < 0 or case.dtype != case.form.storage):
            reasons.append("flashinfer appends tokens of the cache's dtype, each to a slot")
        return reasons

    def attend(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Plan, then run; of each table only the blocks that have positions are handed on."""
        size, heads, head_dim = batch.cache.key.shape[1:]
        contexts = batch.context_lens.tolist()
        counts = [-(-context // size) for context in contexts]
        blocks = [batch.block_tables[seq, :count].clamp_min(0) for seq, count in enumerate(counts)]
        last = [context - (count - 1) * size if count else 0 for context, count in zip(contexts, counts, strict=True)]
        self._wrapper.plan(
            batch.query_start_loc.int(), _ints([0, *counts]).cumsum(0).int(), torch.cat(blocks).int(), _ints(last),
            batch.query.shape[1], heads, head_dim, size, causal=True, sm_scale=batch.scale,
            window_left=-1 if batch.window is None else batch.window - 1, logits_soft_cap=batch.soft_cap,
            q_data_type=batch.query.dtype, kv_data_type=batch.cache.key.dtype,
        )
        cache = (batch.cache.key, batch.cache.value)
        if not batch.with_lse:
            return self._wrapper.run(batch.query, cache), None
        out, lse = self._wrapper.run(batch.query, cache, return_lse=True)
        return out, lse_in_base_e(lse)

    def write(self, key: torch.Tensor, value: torch.Tensor, cache: Cache, slot_mapping: torch.Tensor) -> None:
        """Each block stands for a request of one page, so that a slot is a position in it."""
        num_blocks, size = cache.key.shape[:2]
        self._library.append_paged_kv_cache(
            key, value, (slot_mapping // size).int(), (slot_mapping % size).int(), (cache.key, cache.value),
            _ints(range(num_blocks)), _ints(range(num_blocks + 1)), _ints([size] * num_blocks), kv_layout="NHD",
        )

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Parts are its second dim."""
        out, lse = self._library.merge_states(outs.transpose(0, 1).contiguous(),
                                              lse_in_base_2(lses.transpose(0, 1).contiguous()))
        return out, lse_in_base_e(lse)


def lse_in_base_e(lse: torch.Tensor) -> torch.Tensor:
    """From FlashInfer's, -inf where a row sees nothing: there it has its infinity, and the log of how many parts."""
    return (lse * math.log(2)).masked_fill(lse < -_INFINITY / 2, -torch.inf)


def lse_in_base_2(lse: torch.Tensor) -> torch.Tensor:
    """To FlashInfer's: between two of -inf it would find NaN."""
    return (lse / math.log(2)).clamp_min(-_INFINITY)


def _of_form(form: CacheForm) -> list[str]:
    refused = {
        f"a cache in {form.storage}": form.storage in (*SCALED, "float32"),
        f"head dims {form.head_dim} and {form.value_dim}":
            form.head_dim != form.value_dim or form.head_dim not in _HEAD_DIMS,
        f"layout {form.layout}": form.layout not in ("plain", "far"),
    }
    return [f"flashinfer does not take {what}" for what, asked in refused.items() if asked]


def _ints(numbers: Any) -> torch.Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32, device="cuda")


def paged() -> FlashInfer:
    """The adapter. Raises RuntimeError without a GPU or the package."""
    if not torch.cuda.is_available():
        raise RuntimeError("flashinfer runs on an NVIDIA GPU, and torch sees none")
    try:
        import flashinfer
    except ImportError as error:
        raise RuntimeError(f"flashinfer is not installed ({error}): pip install flashinfer-python") from error
    return FlashInfer(flashinfer)
